"""The four tasks: the data on which a network is trained, its loss, and the score of its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from networks import Classifier, Detector, DnCNN, UNet
from scenes import SHAPES, Scenes
from torch import nn
from torch.nn import functional as F

SIGMA = 25 / 255  # the standard deviation of the noise that the denoiser removes
STRIDE = 8  # pixels from one place of the detector's maps to the next
CENTRE = 1.0  # a place belongs to an object whose centre is nearer than this many strides
AREA = 0.5  # the least intersection over union of a right box with its object


@dataclass(frozen=True)
class Task:
    """One task.

    network: makes the network anew, with random weights. metric: the name of the score, of which more is better. side, batch,
    steps, rate: those of training. timed: the sides of the square inputs that are timed, one picture each.

    draw(scenes, count, side) gives inputs float32 [count, 3, side, side] and their targets. loss(result, targets) gives a number to
    minimise. score(results, targets) takes a list of each, with one entry for each batch, and gives the metric.
    """

    title: str
    network: Callable[[], nn.Module]
    metric: str
    side: int
    batch: int
    steps: int
    rate: float
    timed: tuple[int, ...]
    draw: Callable[[Scenes, int, int], tuple[torch.Tensor, Any]]
    loss: Callable[[Any, Any], torch.Tensor]
    score: Callable[[list[Any], list[Any]], float]


def as_input(images: list[np.ndarray]) -> torch.Tensor:
    """Images [H, W, 3] as a tensor float32 [N, 3, H, W]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# ---- a digit


def draw_digit(scenes: Scenes, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*(scenes.one_digit(side) for _ in range(count)), strict=True)
    return as_input(list(images)), torch.tensor(labels)


def accuracy(results: list[torch.Tensor], targets: list[torch.Tensor]) -> float:
    right = torch.cat([result.argmax(1) == target for result, target in zip(results, targets, strict=True)])
    return 100 * right.float().mean().item()


# ---- noise


def draw_noise(scenes: Scenes, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    clean = as_input([scenes.photograph(side) for _ in range(count)])
    noise = scenes.random.normal(0, SIGMA, clean.shape).astype(np.float32)
    return clean + torch.from_numpy(noise), clean


def psnr(results: list[torch.Tensor], targets: list[torch.Tensor]) -> float:
    """The mean PSNR in dB over the pictures."""
    errors = [(result.clamp(0, 1) - target).square().mean((1, 2, 3)) for result, target in zip(results, targets, strict=True)]
    return (-10 * torch.cat(errors).log10()).mean().item()


# ---- the shape of each pixel


def draw_masks(scenes: Scenes, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, masks, _, _ = zip(*(scenes.many(side) for _ in range(count)), strict=True)
    return as_input(list(images)), torch.from_numpy(np.stack(masks))


def mask_loss(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy, in which a pixel of the background, which fills most of each scene, weighs a fifth of any other pixel."""
    return F.cross_entropy(result, target, weight=torch.tensor([0.2] + [1.0] * len(SHAPES)))


def mean_iou(results: list[torch.Tensor], targets: list[torch.Tensor]) -> float:
    """The mean over the classes of the intersection over union in %, each over all pixels of the class."""
    classes = len(SHAPES) + 1
    counts = torch.zeros(classes, classes)
    for result, target in zip(results, targets, strict=True):
        pairs = target.flatten() * classes + result.argmax(1).flatten()
        counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    shared = counts.diagonal()
    return 100 * (shared / (counts.sum(0) + counts.sum(1) - shared)).mean().item()


# ---- boxes around shapes

Boxes = list[tuple[torch.Tensor, torch.Tensor]]  # for each image: boxes float32 [M, 4] in pixels, and classes int64 [M]
Maps = tuple[torch.Tensor, torch.Tensor]  # the output of the detector


def draw_boxes(scenes: Scenes, count: int, side: int) -> tuple[torch.Tensor, Boxes]:
    images, _, boxes, kinds = zip(*(scenes.many(side) for _ in range(count)), strict=True)
    return as_input(list(images)), [(torch.from_numpy(b), torch.from_numpy(k)) for b, k in zip(boxes, kinds, strict=True)]


def places(height: int, width: int) -> torch.Tensor:
    """The x and y of the middle of every place of the maps, in pixels: float32 [2, height, width]."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y]) * STRIDE


def box_loss(maps: Maps, targets: Boxes) -> torch.Tensor:
    """The focal loss of the classes, plus the loss of the distances at places that belong to an object."""
    logits, logarithms = maps
    at = places(*logits.shape[2:])
    wanted, distances, owned = (
        torch.zeros_like(logits),
        torch.ones_like(logarithms),
        torch.zeros_like(logits[:, 0], dtype=torch.bool),
    )
    for image, (boxes, kinds) in enumerate(targets):
        for box, kind in zip(boxes, kinds, strict=True):
            middle = (box[:2] + box[2:]) / 2
            inside = ((at - middle.view(2, 1, 1)).abs() < CENTRE * STRIDE).all(0)
            wanted[image, kind][inside] = 1
            owned[image] |= inside
            reach = torch.stack([at[0] - box[0], at[1] - box[1], box[2] - at[0], box[3] - at[1]]) / STRIDE
            distances[image][:, inside] = reach.clamp(min=0.1)[:, inside]
    share = torch.where(wanted > 0, 1 - logits.sigmoid(), logits.sigmoid())
    focal = share**2 * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    apart = F.smooth_l1_loss(logarithms, distances.log(), reduction="none", beta=0.1).mean(1)
    count = owned.sum().clamp(min=1)
    return focal.sum() / count + (apart * owned).sum() / count


def iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The intersection over union of boxes [M, 4] with boxes [L, 4], as [M, L]."""
    corner = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(2)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def found_boxes(maps: Maps, least: float = 0.05) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The boxes, classes and confidences of each image, the most confident first. Of boxes that overlap by half only the most
    confident one is kept."""
    logits, logarithms = maps
    at = places(*logits.shape[2:]).flatten(1)
    found = []
    for image in range(len(logits)):
        confidence, kind = logits[image].flatten(1).sigmoid().max(0)
        reach = logarithms[image].flatten(1).clamp(max=5).exp() * STRIDE
        boxes = torch.stack([at[0] - reach[0], at[1] - reach[1], at[0] + reach[2], at[1] + reach[3]], 1)
        order = confidence.argsort(descending=True)
        order, kept = order[confidence[order] > least], []
        while len(order):
            kept.append(order[0])
            order = order[iou(boxes[order[:1]], boxes[order])[0] < AREA]
        chosen = torch.stack(kept) if kept else order
        found.append((boxes[chosen], kind[chosen], confidence[chosen]))
    return found


def mean_precision(results: list[Maps], targets: list[Boxes]) -> float:
    """The mean over the classes of the average precision in % (area under the curve). A box is right where its intersection over
    union with an object is at least AREA."""
    found = [image for maps in results for image in found_boxes(maps)]
    wanted = [image for batch in targets for image in batch]
    precisions = []
    for kind in range(len(SHAPES)):
        verdicts: list[tuple[float, bool]] = []
        for (boxes, kinds, confidence), (true_boxes, true_kinds) in zip(found, wanted, strict=True):
            mine, true = kinds == kind, true_boxes[true_kinds == kind]
            free = torch.ones(len(true), dtype=torch.bool)
            for box, sure in zip(boxes[mine], confidence[mine], strict=True):
                shares = iou(box[None], true)[0] * free
                right = len(true) > 0 and shares.max().item() >= AREA
                if right:
                    free[shares.argmax()] = False
                verdicts.append((sure.item(), right))
        right = np.array([verdict for _, verdict in sorted(verdicts, key=lambda pair: -pair[0])], float)
        total = sum(int((kinds == kind).sum()) for _, kinds in wanted)
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a larger one
        precisions.append(float((best * right).sum() / max(total, 1)))
    return 100 * float(np.mean(precisions))


TASKS = {
    "classifier": Task(
        "ResNet-style classifier", Classifier, "accuracy, %", 64, 32, 1100, 2e-3, (64, 224), draw_digit, F.cross_entropy, accuracy
    ),
    "denoiser": Task("DnCNN, 10 layers", DnCNN, "PSNR, dB", 40, 8, 500, 1e-3, (128, 256), draw_noise, F.l1_loss, psnr),
    "segmentation": Task("U-Net", UNet, "mean IoU, %", 64, 8, 700, 2e-3, (128, 256), draw_masks, mask_loss, mean_iou),
    "detector": Task("detector", Detector, "mAP at 0.5, %", 128, 8, 700, 1e-3, (128, 256), draw_boxes, box_loss, mean_precision),
}
