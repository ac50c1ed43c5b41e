"""Fine-tuning of a calibrated network towards its own float form: no ground truth, minutes on a CPU."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch.nn import functional as F

from ..config import BestTuning, PaperTuning
from ..quantize import weight_step
from ..simulate import SimulatedConv2d, SimulatedNetwork


class Tuning(ABC):
    """One fine-tuning run: `step(batch)` until `done` is `end`, then `finish()`. Its state can be kept and restored.

    end: the number of steps, as far as is known; a step may make it smaller. repeats: after how many steps the same batches come
    again; 0 for never. candidates: the number of crops from which each crop is chosen.
    """

    repeats = 0
    candidates = 1

    def __init__(self, model: SimulatedNetwork, steps: int):
        self.model, self.end, self.done = model, steps, 0

    @abstractmethod
    def step(self, batch: torch.Tensor) -> dict[str, float]:
        """One update from crops [N, 3, h, w] in 0..255. Returns the parts of the loss by name."""

    def finish(self) -> None:
        """Leaves the network as it was found, except for its values."""
        self.model.set_compute_dtype(None)
        self.model.requires_grad_(False)

    @abstractmethod
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]: ...

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if nothing had happened."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()}
        return {"done": self.done, "end": self.end, "model": self.model.state_dict(), "optimizers": optimizers}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.done, self.end = state["done"], state["end"]
        self.model.load_state_dict(state["model"])
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])


class PaperCycle(Tuning):
    """Learns weight ranges, activation ranges and bit maps in turn, an epoch each (AdaBM, section 3.3).

    The loss is the L1 distance of the images, plus the distance of the normalised features of every block and, in the epochs of the
    bit maps, the bits above the base bits. Every epoch sees the same crops in the same order, because the authors' program seeds
    its generators anew before each.
    """

    KINDS = ("weight_ranges", "act_ranges", "bit_maps")

    def __init__(self, model: SimulatedNetwork, tuning: PaperTuning, steps: int):
        super().__init__(model, steps)
        self.tuning, self.repeats = tuning, tuning.epoch
        convs = model.quantized_convs()
        groups = {
            "weight_ranges": [{"params": [conv.weight_range for conv in convs], "lr": tuning.lr_weight_range}],
            "act_ranges": [{"params": [p for conv in convs for p in (conv.lower_a, conv.upper_a)], "lr": tuning.lr_act_range}],
        }
        if model.config.adaptive:
            layers = [conv.measure_layer for conv in convs if conv.adaptive]
            groups["bit_maps"] = [
                {"params": layers, "lr": tuning.lr_layer_map},
                {"params": [model.measure_l, model.measure_u], "lr": tuning.lr_image_map},
            ]
        self.optimizers: dict[str, torch.optim.Optimizer] = {kind: torch.optim.Adam(group) for kind, group in groups.items()}
        model.set_compute_dtype(compute_dtype(device_of(model)))

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.optimizers

    def step(self, batch: torch.Tensor) -> dict[str, float]:
        model, tuning = self.model, self.tuning
        kinds = [kind for kind in self.KINDS if kind in self.optimizers]
        epoch = self.done // tuning.epoch
        kind = kinds[epoch % len(kinds)]
        optimizer = self.optimizers[kind]
        if self.done % tuning.epoch == 0 and epoch >= len(kinds):
            for group in optimizer.param_groups:
                group["lr"] *= tuning.decay
        model.requires_grad_(False)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        with torch.no_grad(), model.float_mode():
            teacher, teacher_features = model.features(batch)
        with torch.enable_grad():
            image, features = model.features(batch)
            losses = {"image": F.l1_loss(image, teacher), "features": _feature_distance(features, teacher_features)}
            loss = losses["image"] + tuning.feature_loss * losses["features"]
            if kind == "bit_maps":
                losses["bits"] = F.relu(model.mean_bits(batch).mean() - model.config.act_bits)
                loss = loss + tuning.bit_loss * losses["bits"]
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
        optimizer.step()
        self.done += 1
        return {name: float(value.detach()) for name, value in losses.items()}


def _feature_distance(features: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Mean over blocks and images of the L2 distance, where each block's features are scaled for each image to norm 1 over the
    batch."""
    distances, images = [], features[0].shape[0]
    for a, b in zip(features, teacher, strict=True):
        difference = a / a.norm().clamp(min=1e-12) - b / b.norm().clamp(min=1e-12)
        distances.append(difference.flatten(1).norm(dim=1).sum())
    return reduce(torch.add, distances) / (images * images * len(features))


class JointTuning(Tuning):
    """Recipe "best": everything that rounds is learned at once, and the bits stay.

    Weights are learned with a straight-through estimate (they settle on the best of their neighbouring levels), together with their
    biases, the range of each output channel and both ends of each activation range, each image at its own bits. Only the
    convolutions of the body are tuned, because the 8-bit ends lose next to nothing. The loss is the mean squared distance of the
    images.
    """

    def __init__(self, model: SimulatedNetwork, tuning: BestTuning, steps: int):
        super().__init__(model, steps)
        self.tuning, self.candidates = tuning, tuning.candidates
        # From this step on rates fall: at once, or once the loss has settled, but early enough for all to end with `steps`.
        self.falls_at = max(steps - tuning.cooldown, 0) if tuning.tolerance else 0
        self.losses: list[float] = []  # the logarithms of as many steps as are compared
        groups: list[dict[str, Any]] = []
        shares: dict[torch.Tensor, torch.Tensor] = {}
        for conv in model.quantized_convs():
            if conv.end:
                continue
            with torch.no_grad():
                step = float(weight_step(conv.weight_range, conv.weight_bits, conv.weight_grid).mean())
                width = float(conv.upper_a - conv.lower_a)
                if model.equalized:
                    shares |= _shares(conv)
            # On a finer grid the weights start nearer to where they belong, and restless weights cost more. This was measured at 4
            # and 6 bits.
            finer = 2.0 ** (-0.8 * max(conv.weight_bits - 4, 0))
            groups.append(_group([conv.weight], tuning.lr_weight * step * finer))
            groups.append(_group([conv.weight_range], tuning.lr_weight_range * float(conv.weight_range.detach().mean())))
            groups.append(_group([conv.lower_a, conv.upper_a], tuning.lr_act_range * width))
        model.requires_grad_(False)
        for bias in model.body_biases():
            groups.append(_group([bias], tuning.lr_bias * max(float(bias.detach().abs().mean()), 1e-6)))
        for group in groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        self.optimizer = _Adam(groups, shares)
        model.set_compute_dtype(compute_dtype(device_of(model)))

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"joint": self.optimizer}

    def state(self) -> dict[str, Any]:
        shares = list(self.optimizer.shares.values())
        return super().state() | {"falls_at": self.falls_at, "losses": self.losses, "shares": shares}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.falls_at, self.losses = state["falls_at"], state["losses"]
        for share, kept in zip(self.optimizer.shares.values(), state["shares"], strict=True):
            share.copy_(kept)

    def step(self, batch: torch.Tensor) -> dict[str, float]:
        fallen = max(self.done - self.falls_at, 0) / (self.end - self.falls_at)
        rate = 0.5 * (1 + math.cos(math.pi * fallen)) * min(1.0, (self.done + 1) / self.tuning.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * rate
        with torch.no_grad(), self.model.float_mode():
            teacher = self.model.preview(batch)
        with torch.enable_grad():
            distance = _seen_distance if self.model.equalized else F.mse_loss
            loss = distance(self.model.preview(batch), teacher)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for conv in self.model.quantized_convs():
                conv.weight_range.clamp_(min=2.0**-60)
        self.done += 1
        value = float(loss.detach())
        if self.tuning.tolerance and self.done < self.falls_at:
            self._end_if_settled(value)
        return {"image": value}

    def _end_if_settled(self, loss: float) -> None:
        span = self.tuning.span
        self.losses = [*self.losses, math.log(max(loss, 1e-30))][-2 * span :]
        if len(self.losses) < 2 * span:
            return
        before, after = (sum(part) / span for part in (self.losses[:span], self.losses[span:]))
        if after > before + math.log1p(-self.tuning.tolerance):
            self.falls_at, self.end = self.done, self.done + self.tuning.cooldown


def _seen_distance(picture: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of two pictures as they are shown, clamped to 0..255. A value outside that should lie inside has a
    gradient all the same."""
    wanted = teacher.clamp(0, 255)
    error = picture - wanted
    return torch.where((wanted == 255) & (error > 0) | (wanted == 0) & (error < 0), 0.0, error).square().mean()


class _Adam(torch.optim.Adam):
    """Adam, where some parameters have a factor for the step of each of their values.

    shares: the factors, by parameter.
    """

    def __init__(self, groups: list[dict[str, Any]], shares: dict[torch.Tensor, torch.Tensor]):
        super().__init__(groups, betas=(0.9, 0.99))
        self.shares = shares

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # there is no closure
        before = {parameter: parameter.clone() for parameter in self.shares}
        super().step()
        for parameter, share in self.shares.items():
            parameter.copy_(torch.lerp(before[parameter], parameter, share))


def _shares(conv: SimulatedConv2d) -> dict[torch.Tensor, torch.Tensor]:
    """The factor of each output channel on the step of its layer: how far its weights reach, relative to the mean. Factors on
    channels (calibration/equalize.py) make some reach a hundred times as far as others."""
    share = conv.weight_range / conv.weight_range.mean()
    found: dict[torch.Tensor, torch.Tensor] = {conv.weight: share, conv.weight_range: share}
    if conv.bias is not None:
        found[conv.bias] = share.view(-1)
    return found


def _group(parameters: Iterable[torch.Tensor], rate: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": rate, "full_lr": rate}


def device_of(model: SimulatedNetwork) -> torch.device:
    """The device on which a network lies and computes."""
    return next(model.parameters()).device


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device multiplies it at least twice as fast as float32, else None, which means the dtype of the input. The
    values that fine-tuning learns stay in float32."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else None


def make_tuning(model: SimulatedNetwork) -> Tuning:
    """The fine-tuning that the settings of the network ask for."""
    config = model.config
    if isinstance(config.tuning, PaperTuning):
        return PaperCycle(model, config.tuning, config.steps)
    assert config.tuning is not None, "a config without one has the defaults of its recipe"
    return JointTuning(model, config.tuning, config.steps)
