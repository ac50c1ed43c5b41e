"""The exit of easy tiles (`adabm_kernels.exits`): its filter in closed form, and the bend up to which a tile is easy.

Both come from what the float network makes of the calibration pictures, without ground truth. docs/depth.md says what was measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any

import torch
from torch.nn import functional as F

from ..exits import ExitParameters, exit_output, fold_borders, pixel_bends
from ..networks.colours import gives_back_colours
from ..networks.detect import float_network
from ..nn import ConvertedNetwork, from_simulated
from ..simulate import SimulatedNetwork
from .made import made_pictures

KERNEL = 7  # pixels a side of the filter; one of 5 lies 0.4 dB further from the float network
PIXELS = 120_000  # pixels that are looked at: a few per cent of what fine-tuning computes
INNER = 32  # pixels a side of a crop that are looked at, about: more of them would be much alike
BORDER = 8  # pixels along the edges of a crop that are not looked at, because the float network sees the end of the crop there
BATCH = 8  # crops of one forward pass
CLASSES = 10  # classes of detail, each of equally many tiles
MARGIN = 0.8  # share of the threshold at which nothing is lost here, because the edges of unseen pictures differ
CLASS_LOSS = 0.05  # dB by which a class of detail may lie further from the float network than without the exit
ROUNDS = 6  # rounds of reweighting
RIDGE = 1e-6  # the ridge term, relative to the squares of the inputs
LARGEST = 127  # the largest magnitude of a weight of 8 bits, and of a tap in units
UNITS = 7 / 8  # the least unit that is tried, as a share of the largest that fits
MOST_MOVES = 1000  # the most moves of units between rounded taps


@dataclass(frozen=True)
class Crop:
    """A part of a picture, and what the float network makes of it.

    x: float32 [3, h, w], whole numbers in 0..255. border: pixels along the edges that are not looked at. offset: bits that its
    picture gets more or less. y: float32 [3*s^2, h, w], the sub-pixels of the float network's output.
    """

    x: torch.Tensor
    border: int
    offset: int
    y: torch.Tensor

    def tiles(self, values: torch.Tensor, tile: int) -> torch.Tensor:
        """The whole tiles of the inner part of values [h, w]: [tiles, tile^2]."""
        rows, columns = ((size - 2 * self.border) // tile for size in values.shape)
        first = self.border
        inner = values[first : first + rows * tile, first : first + columns * tile]
        return inner.reshape(rows, tile, columns, tile).transpose(1, 2).reshape(rows * columns, tile * tile)


@dataclass(frozen=True)
class Tiles:
    """The measurements of each tile, float64 [tiles].

    bend: the largest bend. detail: the mean absolute gradient. network, exit: the mean squared distance from the float network, of
    the network with few bits and of the exit's filter.
    """

    bend: torch.Tensor
    detail: torch.Tensor
    network: torch.Tensor
    exit: torch.Tensor


def fit_exit(
    model: SimulatedNetwork, pictures: Sequence[Sequence[torch.Tensor]], device: torch.device
) -> tuple[ExitParameters | None, dict[str, Any]]:
    """The exit of a calibrated network, or None where no tile of the pictures is easy, and a report in plain values.

    model: its config gives the side of the tiles and what they may lose; it is moved to the CPU. pictures: for each kind, float32
    [3, h, w] in 0..255. Crops of all kinds are looked at in turn, beside a few made ones (calibration/made.py). device: where the
    float network computes.

    Where the float network gives back flat colours as they are, so does the exit, exactly.
    """
    config, scale = model.config, model.spec.scale
    network = from_simulated(model.cpu())  # the integers run many times as fast as their simulation
    with torch.device("meta"):  # no random weights are drawn
        teacher = float_network(model.spec)
    teacher.load_state_dict(model.float_state(), assign=True)
    teacher.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch leaves it out of its types
    crops = take_crops(network, pictures, config.depth_tile, config.seed)
    if not crops:
        return None, {"share": 0.0}
    outputs = _outputs(crops, lambda x, _: teacher(x.to(device)), scale)
    crops = [replace(crop, y=y) for crop, y in outputs]
    finite = all(bool(crop.y.isfinite().all()) for crop in crops)
    fitted = fit_filter(crops, KERNEL, gives_back_colours(teacher, scale)) if finite else None
    if fitted is None:
        return None, {"share": 0.0}
    weight, unit, bias = fitted
    draft = ExitParameters(weight, unit, bias, config.depth_tile, 0)
    tiles = measure_tiles(crops, network, draft)
    threshold = choose_threshold(tiles, config.depth_loss)
    if threshold is not None and config.depth_loss == 0:
        threshold = int(MARGIN * threshold)
    if threshold is None or not (tiles.bend <= threshold).any():
        return None, {"share": 0.0}
    easy = tiles.bend <= threshold
    report = {
        "tile": config.depth_tile,
        "threshold": threshold,
        "share": float(easy.double().mean()),
        "psnr_db": _psnr(torch.where(easy, tiles.exit, tiles.network)),
        "psnr_without_db": _psnr(tiles.network),
    }
    return replace(draft, threshold=threshold), report


def _psnr(errors: torch.Tensor) -> float:
    return 10 * math.log10(255**2 / max(float(errors.mean()), 1e-3))


# ---- crops


def take_crops(network: ConvertedNetwork, pictures: Sequence[Sequence[torch.Tensor]], tile: int, seed: int) -> list[Crop]:
    """Crops of whole numbers at random places of made pictures, then of the kinds of pictures in turn, PIXELS in all. `y` is left
    empty.

    A large picture gives several crops, after all others have given theirs. Pictures smaller than a tile give none.
    """
    rng, side = random.Random(seed), max(round(INNER / tile), 1) * tile + 2 * BORDER
    orders = []
    for kind in pictures:
        turns = [(turn + rng.random(), i) for i, x in enumerate(kind) for turn in range(max(x[0].numel() // side**2, 1))]
        orders.append([kind[i] for _, i in sorted(turns)])
    crops, looked_at = [], 0
    in_turn = (picture for some in zip_longest(*orders) for picture in some if picture is not None)
    for picture in chain(made_pictures(seed), in_turn):
        height, width = picture.shape[1:]
        if min(height, width) < tile:
            continue
        top, left = rng.randint(0, max(height - side, 0)), rng.randint(0, max(width - side, 0))
        x = picture[:, top : top + side, left : left + side].round()
        border = min(BORDER, (min(x.shape[1:]) - tile) // 2)
        offset = int(network.image_offsets(picture[None].contiguous()))
        crops.append(Crop(x, border, offset, torch.empty(0)))
        looked_at += x[0].numel()
        if looked_at >= PIXELS:
            break
    return crops


def _outputs(
    crops: Sequence[Crop], network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], scale: int
) -> Iterator[tuple[Crop, torch.Tensor]]:
    """Yields every crop with the sub-pixels that a network makes of it, float32 [3*scale^2, h, w]. Crops of one size are computed
    together.

    network: a function of images [N, 3, h, w] and of the bits that they get more or less, int32 [N].
    """
    sizes: dict[torch.Size, list[Crop]] = {}
    for crop in crops:
        sizes.setdefault(crop.x.shape, []).append(crop)
    for same in sizes.values():
        for start in range(0, len(same), BATCH):
            part = same[start : start + BATCH]
            x = torch.stack([crop.x for crop in part]).contiguous(memory_format=torch.channels_last)
            y = network(x, torch.tensor([crop.offset for crop in part], dtype=torch.int32))
            yield from zip(part, F.pixel_unshuffle(y.float().cpu(), scale), strict=True)


# ---- the filter


def fit_filter(crops: Sequence[Crop], kernel: int, keeps: bool) -> tuple[torch.Tensor, int, torch.Tensor] | None:
    """The filter of `kernel` pixels a side that lies nearest to the float network where that is close to linear.

    It is found by least squares, each pixel weighted by how near the last solution came there. Returns the weight, unit and bias of
    ExitParameters, or None where they do not fit 8 bits. keeps: whether the taps of an output sum to 1 for its own colour and to 0
    for the others, before and after rounding.
    """
    inputs, target = _equations(crops, kernel, keeps)
    weights = torch.ones(len(inputs), dtype=torch.float64)
    for _ in range(ROUNDS):
        square = inputs.T @ (inputs * weights[:, None])
        mixed = inputs.T @ (target * weights[:, None])
        # The middle pixel's difference from itself is always zero, so the smallest solution leaves its tap alone.
        solution = torch.linalg.lstsq(square + RIDGE * square.diagonal().diag(), mixed, driver="gelsd").solution
        error = (inputs @ solution - target).square().mean(1)
        weights = 1 / (error + 1)
        weights /= weights.mean()
    taps, outputs = kernel**2, target.shape[1]
    own = torch.eye(3, dtype=torch.float64).repeat_interleave(outputs // 3, 0)  # [outputs, 3], the colour of each output
    sums = own if keeps else solution[3 * taps : 3 * taps + 3].T
    exact = solution[: 3 * taps].T.reshape(outputs, 3, taps)
    exact[:, :, taps // 2] = sums - exact.sum(2) + exact[:, :, taps // 2]
    rounded = round_taps(exact, square[: 3 * taps, : 3 * taps])
    if rounded is None:
        return None
    weight, unit = rounded
    bias = torch.zeros(outputs, dtype=torch.float64)
    if not keeps:
        taken = torch.cat([weight.double().flatten(1) / unit, weight.double().sum(2) / unit], 1)
        rest = target - inputs[:, :-1] @ taken.T
        bias = (rest * weights[:, None]).sum(0) / weights.sum()
    shape = (outputs, 3, kernel, kernel)
    return weight.reshape(shape).to(torch.int8), unit, bias.float()


def _equations(crops: Sequence[Crop], kernel: int, keeps: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two values: the inputs, float64 [pixels, columns], and the targets, float64 [pixels, 3*s^2].

    The columns are the differences of the pixels under the filter from the middle one of their colour. Where colours are kept, the
    target is the difference from the middle pixel too, so that taps sum to what they must whatever the solution is. Elsewhere three
    columns with the middle pixels of the colours and one column of ones follow.
    """
    pad, inputs, target = kernel // 2, [], []
    for crop in crops:
        height, width = crop.x.shape[1:]
        seen = F.unfold(F.pad(crop.x[None], [pad] * 4, mode="replicate"), kernel).view(3, kernel**2, height, width)
        rows, columns = (slice(crop.border, size - crop.border) for size in (height, width))
        seen, y, middle = (values[..., rows, columns].flatten(-2).double() for values in (seen, crop.y, crop.x))
        differences = (seen - middle[:, None]).flatten(0, 1)
        if keeps:
            y = y - middle.repeat_interleave(len(y) // 3, 0)
        else:
            differences = torch.cat([differences, middle, torch.ones_like(middle[:1])])
        inputs.append(differences.T)
        target.append(y.T)
    return torch.cat(inputs), torch.cat(target)


def round_taps(exact: torch.Tensor, square: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """Rounds taps, float64 [outputs, 3, taps], to whole numbers in units of 1/unit. Returns these, float64 of the same shape, and
    the unit, or None where no unit lets them fit.

    square: float64 [3*taps, 3*taps], the weighted squares of the inputs, which give the cost of an error of the taps. Units are
    tried downwards from the largest that fits 8 bits, also at the borders of images. The numbers of each colour sum to the nearest
    whole number of units, exactly where the taps sum to one. Single units are then moved from tap to tap of a colour as long as
    that costs less.
    """
    outputs, colours, taps = exact.shape
    kernel = math.isqrt(taps)

    def most(taps: torch.Tensor) -> float:
        return float(fold_borders(taps.view(outputs, colours, kernel, kernel)).abs().max())

    def cost(unit: int) -> float:
        error = (_nearest(exact, unit) / unit - exact).flatten(1)
        return float(((error @ square) * error).sum())

    largest = int((LARGEST + 0.49) / max(most(exact), 1e-3))
    least = int(largest * UNITS)
    for unit in chain(sorted(range(largest, least, -1), key=cost), range(least, 0, -1)):
        numbers = _moved(_nearest(exact, unit), exact, unit, square)
        if most(numbers) <= LARGEST:
            return numbers, unit
    return None


def _nearest(exact: torch.Tensor, unit: int) -> torch.Tensor:
    """Whole numbers near the taps, with the right sums. Where rounding misses a sum, the taps whose fraction is nearest to a half
    are rounded the other way."""
    scaled = exact * unit
    numbers = scaled.round()
    wanted = (scaled.sum(2, keepdim=True).round() - numbers.sum(2, keepdim=True)).round()
    # Where units lack, the taps that were rounded down most gain one, and where there are too many, those rounded up most lose one.
    gain = ((scaled - numbers) * wanted.sign()).masked_fill(numbers * wanted.sign() >= LARGEST, float("-inf"))
    order = gain.argsort(dim=2, descending=True, stable=True).argsort(2)
    return numbers + wanted.sign() * (order < wanted.abs())


def _moved(numbers: torch.Tensor, exact: torch.Tensor, unit: int, square: torch.Tensor) -> torch.Tensor:
    outputs, colours, taps = numbers.shape
    diagonal = square.diagonal().view(colours, taps)
    blocks = torch.stack([square.view(colours, taps, colours, taps)[c, :, c] for c in range(colours)])
    pairs = (diagonal[:, :, None] + diagonal[:, None] - 2 * blocks)[None]  # the cost of moving a unit by itself
    scaled = exact * unit
    for _ in range(MOST_MOVES):
        slope = 2 * ((numbers - scaled).flatten(1) @ square).view_as(numbers)
        change = slope[:, :, :, None] - slope[:, :, None] + pairs  # [outputs, colours, gains, loses]
        change = change.masked_fill((numbers >= LARGEST)[:, :, :, None] | (numbers <= -LARGEST)[:, :, None], float("inf"))
        least, where = change.flatten(1).min(1)
        better = least < -1e-9 * diagonal.mean()
        if not better.any():
            break
        gains, loses = where // taps, where // taps**2 * taps + where % taps
        step = better.to(numbers.dtype)[:, None]
        flat = numbers.view(outputs, -1)
        flat.scatter_add_(1, gains[:, None], step)
        flat.scatter_add_(1, loses[:, None], -step)
    return numbers


# ---- the threshold


def measure_tiles(crops: Sequence[Crop], network: ConvertedNetwork, parameters: ExitParameters) -> Tiles:
    """Measures the tiles of the crops, with the network at full depth."""
    found = []
    for crop, y in _outputs(crops, network, parameters.scale):
        wanted, filtered = crop.y.clamp(0, 255), F.pixel_unshuffle(exit_output(parameters, crop.x[None])[0], parameters.scale)
        errors = [(made.clamp(0, 255) - wanted).square().mean(0) for made in (y, filtered)]
        values = [pixel_bends(crop.x[None])[0].float(), _gradients(crop.x), *errors]
        bend, *means = (crop.tiles(value, parameters.tile) for value in values)
        found.append(torch.stack([bend.amax(1), *(mean.mean(1) for mean in means)]))
    return Tiles(*torch.cat(found, 1).double())


def _gradients(x: torch.Tensor) -> torch.Tensor:
    """Absolute differences from the pixels above and to the left, averaged over the colours: [h, w]."""
    down, right = (F.pad(x.diff(dim=axis).abs().mean(0), pad) for axis, pad in ((1, [0, 0, 1, 0]), (2, [1, 0])))
    return down + right


def choose_threshold(tiles: Tiles, loss: float) -> int | None:
    """The largest bend up to which the exit may compute tiles, None where there is none.

    Over all tiles, their distance from the float network then grows by at most `loss` dB. Where `loss` is 0, it grows by at most
    CLASS_LOSS in each class of detail: a loss by few bits in one class is no reason for a loss in another.
    """
    order = tiles.bend.argsort(stable=True)
    bends, network, gain = tiles.bend[order], tiles.network[order], (tiles.exit - tiles.network)[order]
    may = gain.cumsum(0) <= (10 ** (loss / 10) - 1) * network.sum()
    if loss == 0:
        rank = tiles.detail.argsort(stable=True).argsort(stable=True)
        classes = (rank * CLASSES // len(rank))[order]
        for number in range(CLASSES):
            mine = classes == number
            may &= (gain * mine).cumsum(0) <= (10 ** (CLASS_LOSS / 10) - 1) * (network * mine).sum()
    last = torch.cat([bends[1:] != bends[:-1], torch.ones(1, dtype=torch.bool)])  # tiles of one bend go together
    allowed = bends[may & last]
    return int(allowed[-1]) if len(allowed) else None
