"""One self-contained page about one picture: the picture before and after, its bits, the times, the quality and the plan."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from .bitmap import BLOCKS, COLOURS, Area, BitMap, colour, ink, legend

_TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"
MEAN = "mean over the layers"


@dataclass(frozen=True)
class Report:
    """The contents of the page. before, after: the encoded pictures with their MIME types. summary: names and values."""

    title: str
    model: str
    scale: int
    before: tuple[str, bytes]
    after: tuple[str, bytes]
    summary: Sequence[tuple[str, str]]
    bits: BitMap
    layer_seconds: Mapping[str, float]
    layer_bits: Mapping[str, float]
    plan: str

    def to_html(self) -> str:
        """The page: nothing in it refers to another file."""
        bits = self.bits
        columns = {MEAN: bits.mean, **{group: bits.of(group) for group in bits.groups}}
        data = {"colours": COLOURS, "bits": {name: [round(float(v), 3) for v in values] for name, values in columns.items()}}
        varies = bits.tile is not None
        heads = ("patch", "place", "size", "ms", *([BLOCKS] if varies else []), "mean", *bits.groups)
        of_tiles = f'<option value="{BLOCKS}">blocks that were computed, by tiles of {bits.tile} pixels</option>'
        return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
            title=escape(self.title),
            model=escape(self.model),
            summary="".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in self.summary),
            before=_data_uri(*self.before),
            after=_data_uri(*self.after),
            width=bits.width * self.scale,
            height=bits.height * self.scale,
            lr_width=bits.width,
            lr_height=bits.height,
            rectangles="".join(_patch(area) for area in bits.areas()),
            tiles="".join(_tile(area) for area in bits.areas(BLOCKS)) if varies else "",
            options="".join(f"<option>{escape(name)}</option>" for name in columns) + (of_tiles if varies else ""),
            legend="".join(_legend(*step) for step in legend().items()),
            blocks_legend="".join(_legend(*step) for step in legend(BLOCKS).items()) if varies else "",
            shown="Bits of every patch, or the tiles that have blocks computed" if varies else "Bits of every patch",
            blocks_caption="; blocks is the share of its pixels that have the network's blocks computed" if varies else "",
            patch_head="".join(f'<th scope="col">{escape(head)}</th>' for head in heads),
            patch_rows="".join(self._patch_row(i) for i in range(len(bits.patches))),
            layer_rows="".join(self._layer_row(name) for name in self.layer_seconds),
            plan=escape(self.plan),
            # "</" would end the element, whatever is inside a string.
            data=json.dumps(data).replace("</", "<\\/"),
        )

    def _patch_row(self, index: int) -> str:
        bits, patch = self.bits, self.bits.patches[index]
        plain: tuple[str, ...] = (f"{patch.x}, {patch.y}", f"{patch.width}x{patch.height}", f"{patch.seconds * 1e3:.1f}")
        if bits.tile is not None:
            plain += (f"{100 * bits.of(BLOCKS)[index]:.0f} %",)
        cells = "".join(f"<td>{text}</td>" for text in plain)
        values = (bits.mean[index], *bits.bits[index])
        cells += "".join(f'<td style="background:{colour(v)};color:{ink(colour(v))}">{v:.2f}</td>' for v in values)
        return f'<tr><th scope="row">{index + 1}</th>{cells}</tr>'

    def _layer_row(self, name: str) -> str:
        seconds, total = self.layer_seconds[name], sum(self.layer_seconds.values()) or 1.0
        bits = f"{self.layer_bits[name]:.2f}" if name in self.layer_bits else "8.00"
        share = 100 * seconds / total
        bar = f'{share:.1f} % <span class="share" style="width:{share / 5:.2f}rem" aria-hidden="true"></span>'
        return f'<tr><th scope="row">{escape(name)}</th><td>{bits}</td><td>{seconds * 1e3:.2f}</td><td>{bar}</td></tr>'


def _legend(text: str, shade: str) -> str:
    return f'<li style="background:{shade};color:{ink(shade)}">{text}</li>'


def _patch(area: Area) -> str:
    style = 'fill-opacity="0.6" stroke="#fff" vector-effect="non-scaling-stroke"'
    return f'<rect {_place(area)} fill="{area.colour}" {style}><title>{area.value:.2f} bits</title></rect>'


def _tile(area: Area) -> str:
    words = "no blocks" if area.value == 0 else "all blocks" if area.value == 1 else f"{100 * area.value:.0f} % of the blocks"
    return f'<rect {_place(area)} fill="{area.colour}"><title>{words}</title></rect>'


def _place(area: Area) -> str:
    return f'x="{area.x}" y="{area.y}" width="{area.width}" height="{area.height}"'


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
