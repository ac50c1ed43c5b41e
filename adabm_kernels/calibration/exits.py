"""The exit of easy tiles (`adabm_kernels.exits`): its filter in closed form, and the bend up to which a tile is easy.

Both come from what the float network makes of the calibration pictures, without ground truth. docs/depth.md says what was measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..exits import ExitParameters, exit_output, pixel_bends

KERNEL = 7  # pixels a side of the filter
BORDER = 8  # pixels along the edges of a crop that are not looked at: there the float network sees the end of the crop
INNER = 64  # about so many pixels a side of a crop are looked at
BATCH = 4  # crops of one forward pass
CLASSES = 10  # of detail, each of equally many tiles
CLASS_LOSS = 0.05  # dB by which a class of detail may lie further from the float network than without the exit
ROUNDS = 6  # of reweighting
RIDGE = 1e-6  # of the mean square of the inputs
UNITS = 7 / 8  # of the largest unit that fits: the least one that is tried
MOST_MOVES = 1000  # of rounded taps

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Crop:
    """A part of a picture, and what the float network makes of it.

    x: float32 [3, h, w], whole numbers in 0..255. border: pixels along the edges that are not looked at. y: float32 [3*s^2, h, w],
    the output's sub-pixels.
    """

    x: torch.Tensor
    border: int
    y: torch.Tensor

    def tiles(self, values: torch.Tensor, tile: int) -> torch.Tensor:
        """The whole tiles of the inner part of values [h, w]: [tiles, tile^2]."""
        rows, columns = ((size - 2 * self.border) // tile for size in values.shape)
        first = self.border
        inner = values[first : first + rows * tile, first : first + columns * tile]
        return inner.reshape(rows, tile, columns, tile).transpose(1, 2).reshape(rows * columns, tile * tile)


@dataclass(frozen=True)
class Tiles:
    """What is known of each tile: float64 [tiles]. bend: the largest. detail: mean absolute gradient. network, exit: mean squared
    distance of the network with few bits and of the exit's filter from the float network."""

    bend: torch.Tensor
    detail: torch.Tensor
    network: torch.Tensor
    exit: torch.Tensor


def fit_exit(
    teacher: Network,
    network: Network,
    pictures: Sequence[torch.Tensor],
    scale: int,
    *,
    tile: int,
    loss: float = 0.0,
    keeps: bool = True,
    pixels: int | None = None,
    kernel: int = KERNEL,
    seed: int = 1,
) -> ExitParameters | None:
    """The exit of a network; None where it would compute no tile.

    teacher, network: the float network and the one with few bits, float32 [N, 3, h, w] -> [N, 3, scale*h, scale*w]. pictures:
    float32 [3, h, w] in 0..255; crops of them are looked at, of `pixels` pixels in all (None: one of each picture). tile: pixels a
    side of a tile. loss: dB by which the result may lie further from the float network than `network` does; where it is 0, no
    class of detail may either. keeps: whether the float network gives back flat colours as they are: then so does the exit, exactly.
    """
    crops = [Crop(x, border, F.pixel_unshuffle(y, scale)) for x, border, y in _run(teacher, _cut(pictures, tile, pixels, seed))]
    if not crops:
        return None
    weight, unit, bias = fit_filter(crops, kernel, keeps)
    draft = ExitParameters(weight, unit, bias, tile, 0)
    threshold = choose_threshold(measure_tiles(crops, network, draft), loss)
    return None if threshold is None else ExitParameters(weight, unit, bias, tile, threshold)


# ---- crops


def _cut(pictures: Sequence[torch.Tensor], tile: int, pixels: int | None, seed: int) -> list[tuple[torch.Tensor, int]]:
    """Crops of whole numbers at random places of the pictures in turn, each with its border."""
    rng, crops, looked_at = random.Random(seed), [], 0
    pictures = [picture for picture in pictures if min(picture.shape[1:]) >= tile]
    side = max(round(INNER / tile), 1) * tile + 2 * BORDER
    order = list(range(len(pictures)))
    rng.shuffle(order)
    for index in order:
        picture = pictures[index]
        height, width = picture.shape[1:]
        top, left = rng.randint(0, max(height - side, 0)), rng.randint(0, max(width - side, 0))
        x = picture[:, top : top + side, left : left + side].round()
        border = min(BORDER, (min(x.shape[1:]) - tile) // 2)
        crops.append((x, border))
        looked_at += x[0].numel()
        if pixels is not None and looked_at >= pixels:
            break
    return crops


def _run(network: Network, crops: Sequence[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int, torch.Tensor]]:
    """(crop, border, what the network makes of it), crops of one size together."""
    sizes: dict[torch.Size, list[tuple[torch.Tensor, int]]] = {}
    for crop in crops:
        sizes.setdefault(crop[0].shape, []).append(crop)
    for same in sizes.values():
        for start in range(0, len(same), BATCH):
            part = same[start : start + BATCH]
            outputs = network(torch.stack([x for x, _ in part]).contiguous(memory_format=torch.channels_last))
            yield from ((x, border, y.float().cpu()) for (x, border), y in zip(part, outputs, strict=True))


# ---- the filter


def fit_filter(crops: Sequence[Crop], kernel: int, keeps: bool) -> tuple[torch.Tensor, int, torch.Tensor]:
    """The filter of `kernel` pixels a side that lies nearest to the float network where that is close to linear.

    Least squares, each pixel weighted by how near the last solution came there. Returns ExitParameters' weight, unit and bias.
    keeps: the taps of an output sum to 1 for its own colour and to 0 for the others, before and after rounding.
    """
    inputs, target = _equations(crops, kernel, keeps)
    weights = torch.ones(len(inputs), dtype=torch.float64)
    for _ in range(ROUNDS):
        square = inputs.T @ (inputs * weights[:, None])
        mixed = inputs.T @ (target * weights[:, None])
        ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
        solution = torch.linalg.lstsq(square + ridge, mixed, driver="gelsd").solution
        error = (inputs @ solution - target).square().mean(1)
        weights = 1 / (error + 1)
        weights /= weights.mean()
    taps, outputs = kernel**2, target.shape[1]
    own = torch.eye(3, dtype=torch.float64).repeat_interleave(outputs // 3, 0)  # [outputs, 3]: the colour of each
    sums = own if keeps else solution[3 * taps : 3 * taps + 3].T
    exact = solution[: 3 * taps].T.reshape(outputs, 3, taps)
    exact[:, :, taps // 2] = sums - exact.sum(2) + exact[:, :, taps // 2]
    weight, unit = round_taps(exact, square[: 3 * taps, : 3 * taps])
    bias = torch.zeros(outputs, dtype=torch.float64)
    if not keeps:
        rounded = torch.cat([weight.double().flatten(1) / unit, weight.double().sum(2) / unit], 1)
        rest = target - inputs[:, :-1] @ rounded.T
        bias = (rest * weights[:, None]).sum(0) / weights.sum()
    shape = (outputs, 3, kernel, kernel)
    return weight.reshape(shape).to(torch.int8), unit, bias.float()


def _equations(crops: Sequence[Crop], kernel: int, keeps: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, target): float64 [pixels, columns] and [pixels, 3*s^2].

    Columns: the differences of the pixels under the filter from the middle one of their colour. Where colours are kept, the target
    is the difference from the middle pixel too: taps then sum to what they must whatever the solution is. Elsewhere, the middle
    pixels of the three colours and a one follow.
    """
    pad, inputs, target = kernel // 2, [], []
    for crop in crops:
        height, width = crop.x.shape[1:]
        seen = F.unfold(F.pad(crop.x[None].double(), [pad] * 4, mode="replicate"), kernel).view(3, kernel**2, height, width)
        inner = (slice(crop.border, height - crop.border), slice(crop.border, width - crop.border))
        seen, y, middle = seen[:, :, *inner].flatten(2), crop.y[:, *inner].double().flatten(1), crop.x[:, *inner].double().flatten(1)
        columns = (seen - middle[:, None]).flatten(0, 1)
        if keeps:
            y = y - middle.repeat_interleave(len(y) // 3, 0)
        else:
            columns = torch.cat([columns, middle, torch.ones_like(middle[:1])])
        inputs.append(columns.T)
        target.append(y.T)
    return torch.cat(inputs), torch.cat(target)


def round_taps(exact: torch.Tensor, square: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Whole numbers for taps, float64 [outputs, 3, taps], in units of 1/unit: (float64 of the same shape, unit).

    square: float64 [3*taps, 3*taps], the weighted squares of the inputs, by which an error of the taps costs. Units are tried from
    the largest that fits 8 bits down; the numbers of each colour sum to the nearest whole number of units, exactly where that is
    one. Single units are then moved from tap to tap of a colour as long as that costs less.
    """
    largest = int(127.4 / max(float(exact.max()), -float(exact.min()), 1e-3))
    best, unit = float("inf"), largest
    for tried in range(largest, int(largest * UNITS), -1):
        error = (_nearest(exact, tried) / tried - exact).flatten(1)
        cost = float(torch.einsum("oi,ij,oj->", error, square, error))
        if cost < best * (1 - 1e-9):
            best, unit = cost, tried
    return _moved(_nearest(exact, unit), exact, unit, square), unit


def _nearest(exact: torch.Tensor, unit: int) -> torch.Tensor:
    """Whole numbers whose sums are right, each near its tap: those whose fraction is nearest to a half are rounded the other way."""
    scaled = exact * unit
    numbers = scaled.round()
    wanted = (scaled.sum(2, keepdim=True).round() - numbers.sum(2, keepdim=True)).round()
    # Where units lack, those that were rounded down most gain one, and the other way round.
    order = ((scaled - numbers) * wanted.sign()).argsort(2, descending=True).argsort(2)
    return (numbers + wanted.sign() * (order < wanted.abs())).clamp(-128, 127)


def _moved(numbers: torch.Tensor, exact: torch.Tensor, unit: int, square: torch.Tensor) -> torch.Tensor:
    outputs, colours, taps = numbers.shape
    diagonal = square.diagonal().view(colours, taps)
    blocks = torch.stack([square.view(colours, taps, colours, taps)[c, :, c] for c in range(colours)])
    pairs = (diagonal[:, :, None] + diagonal[:, None] - 2 * blocks)[None]  # what moving a unit there and back costs, in itself
    scaled = exact * unit
    for _ in range(MOST_MOVES):
        slope = 2 * ((numbers - scaled).flatten(1) @ square).view_as(numbers)
        change = slope[:, :, :, None] - slope[:, :, None] + pairs  # [outputs, colours, gains, loses]
        change = change.masked_fill((numbers >= 127)[:, :, :, None] | (numbers <= -128)[:, :, None], float("inf"))
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


def measure_tiles(crops: Sequence[Crop], network: Network, parameters: ExitParameters) -> Tiles:
    """What is known of the tiles of the crops."""
    found = []
    by_crop = {id(crop.x): crop for crop in crops}
    for x, _, y in _run(network, [(crop.x, crop.border) for crop in crops]):
        crop, scale = by_crop[id(x)], parameters.scale
        wanted = crop.y.clamp(0, 255)
        made = F.pixel_unshuffle(y, scale), F.pixel_unshuffle(exit_output(parameters, x[None])[0], scale)
        errors = [(got.clamp(0, 255) - wanted).square().mean(0) for got in made]
        values = [pixel_bends(x[None])[0].float(), _gradients(x), *errors]
        bend, *means = (crop.tiles(value, parameters.tile) for value in values)
        found.append(torch.stack([bend.amax(1), *(mean.mean(1) for mean in means)]))
    return Tiles(*torch.cat(found, 1).double())


def _gradients(x: torch.Tensor) -> torch.Tensor:
    """Absolute differences from the pixels above and to the left, mean of the colours: [h, w]."""
    down, right = (F.pad(x.diff(dim=axis).abs().mean(0), pad) for axis, pad in ((1, [0, 0, 1, 0]), (2, [1, 0])))
    return down + right


def choose_threshold(tiles: Tiles, loss: float) -> int | None:
    """The largest bend up to which tiles may be the exit's, None where there is none; see `fit_exit`."""
    if not len(tiles.bend):
        return None
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
