"""Measures on a card how the Triton kernels are best launched, and which GPU backend takes a layer less time; keeps both in tables.

Measuring may stop at any time: what was tried is written, and the next run goes on behind it. An entry says where it comes from,
and counts as measured for the same card and the same versions alone.
"""

from __future__ import annotations

import copy
import datetime
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from ..backends import cards, gpu_times, kernels, tables
from ..backends.call import Conv, Kernels, Outputs
from ..machine import triton_version, version
from ..nn.conv import IntegerConv2d
from ..quantize import pack_codes, padded_channels, storage_bits
from ..registry import GPU_BACKENDS, Problem, choose

SIZES = (512, 128, 64)  # sides of the images, the most telling first: more pixels than 2^16 change nothing (tuning.shape_class)
SIDE = 256  # pixels a side for the choice between backends
PROVEN_SIDE = 21  # pixels a side on which a layer is first compared with the integer reference
FIRST = 12  # candidates that are measured for every layer before any layer has more measured
REPLAYS = 10
BITS = 4  # bits of the codes, where a layer can have them
_SAME = ("card", "triton", "adabm")  # fields of an entry that must equal those of a run which continues it


# ---- time


def recorded(work: Callable[[], object], warmups: int = 3) -> Callable[[], None]:
    """Records REPLAYS runs of `work` as a CUDA graph, so that launches are not timed. The result is a function that replays them
    and waits for their end."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmups):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay() -> None:
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()

    return replay


def milliseconds(work: Callable[[], object], rounds: int = 20) -> float:
    """Milliseconds of one run of `work`, recorded: the median of `rounds` measurements, after three that do not count."""
    replay, times = recorded(work), []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        replay()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) / REPLAYS * 1e3


class Clock:
    """A limit on the minutes that measuring may take; None stands for no limit."""

    def __init__(self, minutes: float | None):
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        """Tells whether the minutes have passed."""
        return time.monotonic() >= self._end


def place() -> dict[str, str]:
    """The place and the time of a measurement, as the fields that every entry has."""
    return {
        "card": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "triton": triton_version(),
        "torch": torch.__version__,
        "adabm": version("adabm-kernels"),
    }


def capability() -> int | str:
    """The compute capability of the current card, 90 for 9.0, or the architecture of a card of AMD, "gfx942"."""
    if torch.version.hip is not None:
        return cards.amd_architecture(None)
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def backend_module(name: str) -> Kernels:
    """The module of a backend."""
    return kernels(name)


# ---- a layer


class Bench:
    """One layer on the card, codes to codes (floats where three channels leave), one image of side x side codes of `bits` bits."""

    def __init__(self, conv: Any, backend: str, side: int, bits: int):
        channels, size = conv.weight.shape[-1], (1, side * conv.shuffle, side * conv.shuffle)
        g = torch.Generator().manual_seed(0)
        codes = torch.zeros(1, side, side, padded_channels(channels), dtype=torch.uint8)
        codes[..., :channels] = torch.randint(0, 2**bits, (1, side, side, channels), dtype=torch.uint8, generator=g)
        widths = torch.full((1,), bits, dtype=torch.int32)
        layer = copy.deepcopy(conv).cuda()
        layer.set_backend(backend, 0)
        x_q, bits_of = pack_codes(codes, widths).cuda(), widths.cuda()
        grid, out_bits = (layer.grid, bits_of) if leaves_codes(conv) else (None, None)
        if leaves_codes(conv):
            self.result = torch.zeros(*size, padded_channels(conv.out_channels), dtype=torch.uint8, device=x_q.device)
        else:
            self.result = torch.zeros(*size, conv.out_channels, device=x_q.device)
        self._outputs = Outputs(y_q=self.result) if leaves_codes(conv) else Outputs(self.result)
        self._conv = Conv(
            x_q, bits_of, layer.weight, layer.packed, layer.alpha, layer.beta, layer.slope, None, grid, out_bits, layer.box_filter,
            layer.activation, layer.shuffle, packed_codes=True,
        )  # fmt: skip
        # The backend is called directly, because what is measured needs no checks of the operators.
        self._module = backend_module(backend)

    def run(self) -> None:
        """Computes `result`."""
        self._module.conv2d_out(self._conv, self._outputs)

    def fresh(self) -> torch.Tensor:
        """A copy of `result`, computed over zeros."""
        self.result.zero_()
        self.run()
        return self.result.clone()


def leaves_codes(conv: IntegerConv2d) -> bool:
    """Tells whether the results of a layer leave as codes. Those of a layer with three outputs are colours and leave as floats."""
    return conv.out_channels > 3


def prove(conv: IntegerConv2d, backend: str, bits: int, side: int = PROVEN_SIDE) -> None:
    """Raises RuntimeError where the layer differs from the integer reference on a small image."""
    want, got = (Bench(conv, name, side, bits).fresh() for name in ("reference", backend))
    if not torch.equal(want, got):
        raise RuntimeError(f"{conv.name} on {backend} differs from the integer reference at {bits} bits: nothing is measured")


def bits_of(conv: IntegerConv2d) -> int:
    """The bits of the codes with which a layer is measured: BITS, or the nearest number that it can have."""
    low, high = conv.bit_range
    return min(max(BITS, low), high)


# ---- how Triton's kernels are launched


@dataclass
class Kind:
    """The layers of one shape class. count: how many of a model's layers are of it, 0 where that means nothing."""

    key: str
    conv: Any  # an IntegerConv2d
    side: int
    count: int
    outputs: int

    @property
    def pixels(self) -> int:
        """Pixels of the image."""
        return self.side**2


@dataclass
class Launches:
    """The result of measuring: {key: (kind, entry)} of the table, and how many kinds have candidates left."""

    entries: dict[str, tuple[Kind, dict[str, Any]]] = field(default_factory=dict)
    unfinished: int = 0

    def gained(self, side: int) -> tuple[float, float] | None:
        """Microseconds of all convolutions of a pass over side x side pixels, as two values: launched by the heuristic, and as
        measured. None where nothing was measured for this side."""
        found = [(kind.count, entry) for kind, entry in self.entries.values() if kind.side == side and kind.count]
        if not found:
            return None
        before = sum(count * entry["heuristic_us"] for count, entry in found)
        return before, sum(count * entry["us"] for count, entry in found)


def kinds_of(convs: Iterable[IntegerConv2d], sizes: Sequence[int] = SIZES, counted: bool = True) -> list[Kind]:
    """The shape classes of layers on images of these sizes, beginning with those that take most of the time. counted: whether the
    layers are those of one model, so that their number in a class is the number in the model."""
    from ..backends.triton import tuning

    kinds: dict[str, Kind] = {}
    for side in sizes:
        for conv in convs:
            shape = _shape(conv, side)
            key = tuning.shape_class(*shape)
            kind = kinds.setdefault(key, Kind(key, conv, side, 0, shape[3]))
            kind.count += counted and kind.side == side
    largest = {side: place for place, side in enumerate(sizes)}
    return sorted(kinds.values(), key=lambda kind: (largest[kind.side], -max(kind.count, 1) * kind.conv.weight[0].numel()))


def _shape(conv: Any, side: int) -> tuple[int | str, int, int, int, int]:
    """(capability, padded channels, kernel, outputs, pixels) of a layer on side x side pixels, as tuning.shape_class has them."""
    _, r, _, c = conv.weight.shape[-4:]
    axis = -(-conv.out_channels // 16) * 16 if leaves_codes(conv) else conv.out_channels  # as conv2d_launch computes it
    return capability(), padded_channels(c), r, conv.shuffle**2 * axis, side * side


def tune_launches(
    kinds: list[Kind], path: Path, clock: Clock, say: Callable[[str], None], source: dict[str, str], *, most: int | None = None,
    found: Launches | None = None, milliseconds: Callable[..., float] = milliseconds,
) -> Launches:  # fmt: skip
    """Times the candidates of each kind of layer and adds the best one to a table. Before that, the result of this one has proved
    equal to the result by the heuristic, and the layer on a small image to the integer reference.

    say: a function that is called with each finding, as a line of text. most: the number of candidates that are timed for each
    kind, None for all. found: the result of an earlier call, to which this call adds. Raises OSError naming the path, before
    anything is measured, where the table cannot be written.
    """
    from ..backends.triton import tuning

    tables.check(path)
    found = found or Launches()
    found.unfinished = 0
    for kind in kinds:
        candidates = candidates_for(kind)
        entry = tuning.read_table(path).get(kind.key, {})
        if not _goes_on(entry, source) or entry.get("of") != len(candidates):
            entry = {}
        if entry:
            found.entries[kind.key] = kind, entry
        end = len(candidates) if most is None else min(most, len(candidates))
        if entry.get("tried", 0) < end and not clock.over:
            entry = _measure(kind, candidates[:end], len(candidates), entry, path, clock, say, source, milliseconds)
            found.entries[kind.key] = kind, entry
        found.unfinished += entry.get("tried", 0) < len(candidates)
    return found


def candidates_for(kind: Kind) -> list[Any]:
    """The configs to try for a kind of layer, the heuristic's first: those whose form can compute it (tuning.Config)."""
    from ..backends.triton import conv2d, tuning

    layout = conv2d.Layout.of(tuple(kind.conv.weight.shape), ones=kind.conv.shape.ones)

    def applies(config: tuning.Config) -> bool:
        return config.form == tuning.TILES or not conv2d.why_not_persistent(capability(), layout, config.block_n)

    return [config for config in tuning.candidates(kind.outputs, kind.pixels, capability()) if applies(config)]


def _goes_on(entry: dict[str, Any], source: dict[str, str]) -> bool:
    """Tells whether an entry of a table was measured on this run's card and with this run's versions."""
    return all(entry.get(name) == source[name] for name in _SAME)


def _measure(kind, candidates, of, entry, path, clock, say, source, milliseconds) -> dict[str, Any]:
    """The entry of a kind of layer, with the candidates from the entry's on tried for as long as the clock lets them."""
    from ..backends.triton import tuning

    bits, guess = bits_of(kind.conv), candidates[0]
    bench, tried, best = Bench(kind.conv, "triton", kind.side, bits), entry.get("tried", 0), guess
    with tuning.always(guess):
        prove(kind.conv, "triton", bits)
        want = bench.fresh()
        heuristic_us = us = milliseconds(bench.run) * 1e3
    if tried:  # the best so far is timed again beside new candidates, so that it does not matter how warm the card is
        best = tuning.Config(**entry["config"])
        with tuning.always(best):
            us = milliseconds(bench.run) * 1e3
    reasons: dict[str, int] = {}

    def keep() -> dict[str, Any]:
        figures = {"us": round(us, 2), "heuristic_us": round(heuristic_us, 2), "pixels": kind.pixels, "tried": tried, "of": of}
        tuning.write_entries(path, {kind.key: (best, figures | source)})
        return {"config": vars(best)} | figures | source

    tried = max(tried, 1)  # the heuristic's candidate
    try:
        for config in candidates[tried:]:
            if clock.over:
                break
            try:
                with tuning.always(config):
                    got = bench.fresh()
                    each = milliseconds(bench.run) * 1e3
            except Exception as error:  # Triton's errors have no common class: too much shared memory, too many registers
                reason = _first_line(error)
                reasons[reason] = reasons.get(reason, 0) + 1
                tried += 1
                _check_card(config)
                continue
            if not torch.equal(got, want):
                raise RuntimeError(f"{kind.key}: {described(config)} gives another result than {described(guess)}")
            tried += 1
            if each < us:
                best, us = config, each
    except (KeyboardInterrupt, CardError):
        try:
            keep()
        except OSError as error:  # this error must not be all that is reported
            say(f"{kind.key}: what was measured is lost: {error}")
        raise
    say(f"{kind.key}: {us:.1f} us with {described(best)}, {heuristic_us:.1f} us as it was; {tried} of {of} tried")
    for reason, count in reasons.items():
        say(f"  {count} cannot run: {reason}")
    return keep()


class CardError(RuntimeError):
    """The card can no longer launch anything in this process."""


def _check_card(config: Any) -> None:
    """Raises CardError where a config has broken the card for this process: all later configs would look as if they could not
    run."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as error:
        what = f"after {described(config)} the card launches nothing any more: {_first_line(error)}"
        raise CardError(f"{what} (the same command goes on behind it)") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def described(config: Any) -> str:
    """A config in words: "128x64, 8 warps, 3 stages"."""
    tile = f"{config.block_m}x{config.block_n}, {config.num_warps} warps"
    if config.programs:
        return f"{tile}, weights kept by {config.programs} programs a multiprocessor"
    return f"{tile}, {config.num_stages} stages"


# ---- which backend


@dataclass
class Choices:
    """Times by backend, {key of gpu_times: {backend: microseconds}}, and how many were not measured."""

    times: dict[str, dict[str, float]] = field(default_factory=dict)
    unfinished: int = 0


def layers_of(convs: Iterable[IntegerConv2d]) -> dict[str, tuple[IntegerConv2d, int]]:
    """{key of a table, by this card's capability: (a layer, bits)}, every shape and stored width once."""
    found: dict[str, tuple[IntegerConv2d, int]] = {}
    for conv in convs:
        low, high = conv.bit_range
        for bits in range(low, high + 1):
            found.setdefault(gpu_times.key(cast(int, capability()), conv.shape, storage_bits(bits)), (conv, bits))
    return found


def time_layer(conv: IntegerConv2d, bits: int, side: int, milliseconds: Callable[..., float] = milliseconds) -> dict[str, float]:
    """Microseconds of a pass by each GPU backend. Raises RuntimeError where their results differ."""
    benches = {backend: Bench(conv, backend, side, bits) for backend in GPU_BACKENDS}
    first, second = (bench.fresh() for bench in benches.values())
    if not torch.equal(first, second):
        raise RuntimeError(f"{conv.name}: {' and '.join(benches)} differ at {bits} bits")
    return {backend: round(milliseconds(bench.run) * 1e3, 3) for backend, bench in benches.items()}


def tune_choices(
    convs: Iterable[IntegerConv2d], path: Path, clock: Clock, say: Callable[[str], None], source: dict[str, str], *,
    side: int = SIDE, again: bool = False, milliseconds: Callable[..., float] = milliseconds,
) -> Choices:  # fmt: skip
    """Times the layers on both GPU backends, for every width that their codes are stored in, and adds the times to a table, with
    the config by which Triton's kernel was launched. Times by another config than a layer has now are measured again.

    again: whether times that the table has already are measured again too. Raises RuntimeError where one of the backends cannot
    run, and OSError naming the path where the table cannot be written.
    """
    from ..backends.triton import tuning

    for backend in GPU_BACKENDS:
        choose(Problem("cuda"), backend)
    tables.check(path)
    found = Choices()
    known = tables.read(path, lambda entry: bool(entry["us"]))
    for key, (conv, bits) in layers_of(convs).items():
        config, entry = asdict(tuning.conv2d_config(*_shape(conv, side))), known.get(key, {})
        if not again and _goes_on(entry, source) and entry.get("config") == config:
            found.times[key] = entry["us"]
        elif clock.over:
            found.unfinished += 1
        else:
            times = found.times[key] = time_layer(conv, bits, side, milliseconds)
            say(f"{key}: {', '.join(f'{us:.1f} us by {backend}' for backend, us in times.items())}")
            gpu_times.write_entries(path, {key: {"us": times, "config": config, "pixels": side * side} | source})
    return found


def why_not(backend: str) -> str:
    """The reason why a backend cannot run on the current card; "" where it can."""
    try:
        choose(Problem("cuda"), backend)
    except RuntimeError as error:
        return str(error)
    return ""
