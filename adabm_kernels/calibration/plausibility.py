"""Checks that a float network, as it has been read, upscales pictures at all, before hours of calibration rather than after them.

What weights do not tell (the residual scale, the range of pixels, the mean colour, the order of colours) is easily wrong, and a
network read in the wrong convention gives noise or other colours. So a few pictures are shrunk, upscaled again by the float
network, and compared with the originals and with bicubic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
import torch

from ..evaluation.resize import imresize
from ..networks.convention import CHANNEL_ORDERS, MEAN_SHIFTS, RGB_RANGES, Convention
from ..networks.detect import Detected, float_network, reread, to_float_state
from ..networks.edsr import EDSRSpec

CROPS = 6  # crops that are looked at, those with most detail
LOOKED_AT = 24  # the most pictures that they are chosen from
LEAST_SIDE, MOST_SIDE = 16, 32  # low-resolution pixels of a crop
SHAVED = 4  # low-resolution pixels on each side that are not compared, where the network sees the border of the crop
WORK = 4e11  # multiplications for all readings together, a few seconds: large networks see fewer crops
NOISE = 0.6  # where bicubic leaves a larger share of a crop's variance, the picture is noise and bicubic no reference
ENOUGH_DB = 34.0  # the most that is asked for, because on smooth pictures bicubic is as good as can be
GOOD_DB = 40.0  # from here on readings differ by less than calibration costs
FAR_BELOW_DB = 4.0  # repeating every pixel loses less than this
BETTER_DB = {"rgb": 0.3, "bgr": 0.5}  # by which another reading must win; networks are nearly as good with red and blue exchanged
EQUAL_DB = 0.05  # readings this close count as equal, and the one with fewer changes is suggested

Reading = dict[str, Any]  # res_scale and the fields of Convention by name
_WORDS = {
    "res_scale": "residual scale",
    "rgb_range": "range of pixels",
    "mean_shift": "mean shift",
    "channel_order": "order of colours",
}


@dataclass(frozen=True)
class Crop:
    """A crop of a picture.

    hr: float32 [3, s*h, s*w] in 0..255. lr: the shrunk crop, [1, 3, h, w]. error: the squared error of bicubic for each pixel.
    noise: whether bicubic misses so much of the crop that it is no reference.
    """

    hr: torch.Tensor
    lr: torch.Tensor
    error: float
    noise: bool


class WrongReading(ValueError):
    """A float network upscales pictures far worse than bicubic does, or worse than when it is read otherwise.

    psnr, bicubic: in dB on the shrunk pictures. suggested: what to say of the network beside its weights, by the names of the
    arguments of `calibrate`; None where nothing that was tried helps. better: the PSNR with that reading.
    """

    def __init__(self, psnr: float, bicubic: float, suggested: Reading | None, better: float):
        self.psnr, self.bicubic, self.suggested, self.better = psnr, bicubic, suggested, better
        remedy = ", ".join(f"{name}={value!r}" for name, value in (suggested or {}).items())
        super().__init__(f"calibrate: {self.sentence(f'with {remedy}', 'check=False')}")

    def sentence(self, remedy: str, anyway: str) -> str:
        """A sentence that says what is wrong. remedy: how to get the suggested reading. anyway: how to go on without the check."""
        achieved = f"{self.psnr:.1f} dB where bicubic has {self.bicubic:.1f}"
        found = f"upscaling shrunk ones of these pictures, the float network has {achieved}"
        if self.suggested is None:
            return (
                f"the weights are likely untrained, or read with the wrong residual scale, range of pixels or mean shift: {found}, "
                f"and none of the usual ones helps ({anyway} goes on all the same)"
            )
        wrong = " and ".join(_WORDS[name] for name in self.suggested)
        remedied = f"{self.better:.1f} dB {remedy}"
        return f"the weights are likely read with the wrong {wrong}: {found}, and {remedied} ({anyway} goes on as it is)"


def check_reading(state_dict: Mapping[str, Any], found: Detected, pictures: Iterable[torch.Tensor]) -> None:
    """Raises WrongReading where a float network was probably meant otherwise than it has been read.

    state_dict: the weights that `found` was detected from. pictures: float32 [3, h, w] in 0..255. Pictures too small to be shrunk,
    and pictures of noise, on which nothing can be compared, are passed over, and where no others are left, there is no check. A
    network that keeps the size is not checked, because shrunk pictures do not show what it is for.
    """
    if found.spec.scale == 1:
        return
    crops = _crops(pictures, found.spec.scale)
    if not crops:
        return
    others = _others(state_dict, found)
    work = sum(conv.products for conv in found.spec.convs()) * MOST_SIDE**2
    crops = crops[: max(1, int(WORK / (work * (1 + len(others) / 2))))]
    bicubic = _db(float(np.mean([crop.error for crop in crops])))
    wanted = min(bicubic, ENOUGH_DB)
    psnr = _psnr(state_dict, found, crops)
    if psnr >= GOOD_DB:
        return
    far = psnr < wanted - FAR_BELOW_DB
    # With a wrong residual scale nothing of the picture is left, with a wrong order of colours nearly all. So half of the readings
    # remain.
    others = [(other, changes) for other, changes in others if ("channel_order" if far else "res_scale") not in changes]
    tried = [(_psnr(state_dict, other, crops), changes) for other, changes in others]
    better = [t for t in tried if t[0] >= max(psnr + BETTER_DB[t[1].get("channel_order", "rgb")], wanted - 1)]
    if better:
        best = max(value for value, _ in better)
        value, changes = min((t for t in better if t[0] >= best - EQUAL_DB), key=lambda t: (len(t[1]), -t[0]))
        raise WrongReading(psnr, bicubic, changes, value)
    if far:
        raise WrongReading(psnr, bicubic, None, psnr)


def looked_at(pictures: Sequence[Any]) -> list[Any]:
    """At most LOOKED_AT of the pictures, spread evenly: enough to check a reading on."""
    return [pictures[i * len(pictures) // LOOKED_AT] for i in range(LOOKED_AT)] if len(pictures) > LOOKED_AT else list(pictures)


def _others(state_dict: Mapping[str, Any], found: Detected) -> list[tuple[Detected, Reading]]:
    """Every other usual reading that gives another network, and how to get it."""
    own, edsr = found.convention, isinstance(found.spec, EDSRSpec)
    any_range = found.spec.takes_any_range or found.spec.says_range
    scales = [found.spec.res_scale, *(s for s in (1.0, 0.1) if edsr and s != found.spec.res_scale)]
    ranges = [own.rgb_range, *(r for r in (None, *RGB_RANGES) if any_range and r != own.rgb_range)]
    shifts = [own.mean_shift, *(m for m in (None, *MEAN_SHIFTS) if edsr and m != own.mean_shift)]
    orders = [own.channel_order, *(o for o in CHANNEL_ORDERS if found.spec.any_order and o != own.channel_order)]
    seen, others = {_fingerprint(state_dict, found)}, []
    for scale, rgb_range, shift, order in sorted(product(scales, ranges, shifts, orders), key=lambda r: _changed(r, found)):
        convention = Convention(rgb_range, shift, order)
        other = reread(state_dict, found, scale, convention)
        if (fingerprint := _fingerprint(state_dict, other)) not in seen:
            seen.add(fingerprint)
            changes = {} if scale == found.spec.res_scale else {"res_scale": scale}
            values = {field.name: getattr(convention, field.name) for field in fields(convention)}
            others.append((other, changes | {name: value for name, value in values.items() if value != getattr(own, name)}))
    return others


def _changed(reading: tuple, found: Detected) -> int:
    """The number of parts in which a reading differs from the one that was found."""
    own = found.convention
    said = (found.spec.res_scale, own.rgb_range, own.mean_shift, own.channel_order)
    return sum(a != b for a, b in zip(reading, said, strict=True))


def _fingerprint(state_dict: Mapping[str, Any], found: Detected) -> tuple:
    """A key that is equal for readings of the same network: the spec, and all that a reading changes in the first and last
    convolution."""
    state = to_float_state(state_dict, found)
    ends = [conv.name for conv in (found.spec.convs()[0], found.spec.convs()[-1])]
    return found.spec, *(value.numpy().tobytes() for key, value in state.items() if key.startswith(tuple(ends)))


def _psnr(state_dict: Mapping[str, Any], found: Detected, crops: list[Crop]) -> float:
    """PSNR in dB over all crops and colours, with outputs clamped."""
    with torch.device("meta"):  # no random weights are drawn, and the given ones are not copied
        network = float_network(found.spec)
    network.load_state_dict(to_float_state(state_dict, found), assign=True)
    with torch.no_grad():
        errors = [_error(network(crop.lr)[0], crop.hr, found.spec.scale) for crop in crops]
    return _db(float(np.mean(errors)))


def _crops(pictures: Iterable[torch.Tensor], scale: int) -> list[Crop]:
    """The middles of the pictures that bicubic finds hardest."""
    crops = (_crop(picture, scale) for picture in pictures if min(picture.shape[1:]) >= LEAST_SIDE * scale)
    usable = [crop for crop in crops if not crop.noise]
    return sorted(usable, key=lambda crop: -crop.error)[:CROPS]


def _crop(picture: torch.Tensor, scale: int) -> Crop:
    h, w = (min(side // scale, MOST_SIDE) * scale for side in picture.shape[1:])
    y, x = ((side - length) // 2 for side, length in zip(picture.shape[1:], (h, w), strict=True))
    hr = picture[:, y : y + h, x : x + w].float()
    # Pixels of a picture are whole numbers, and so is what the network will see.
    lr = np.round(imresize(hr.permute(1, 2, 0).numpy().astype(np.float64), 1 / scale).clip(0, 255))
    up = torch.from_numpy(imresize(lr, scale)).permute(2, 0, 1)
    error, variance = _error(up, hr, scale), _error(hr.mean((1, 2), keepdim=True).expand_as(hr), hr, scale)
    return Crop(hr, torch.from_numpy(lr).float().permute(2, 0, 1)[None].contiguous(), error, error > NOISE * variance + 1)


def _error(y: torch.Tensor, hr: torch.Tensor, scale: int) -> float:
    inside = slice(SHAVED * scale, -SHAVED * scale)
    difference = y.clamp(0, 255).double() - hr.double()
    error = float(difference[:, inside, inside].square().mean())
    return error if np.isfinite(error) else 255.0**2


def _db(error: float) -> float:
    return float(10 * np.log10(255**2 / max(error, 1e-3)))
