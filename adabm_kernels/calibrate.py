"""Calibration: the choice of every range, threshold and offset from about 100 low-resolution images, without ground truth.

The method is that of AdaBM (Hong and Lee, CVPR 2024, arXiv 2404.03296), exactly under recipe "paper"; recipe "best" uses what
the kernels allow beyond it. The stages live in `calibration/`.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from signal import SIGINT, SIGTERM
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .calibration import images as samples
from .calibration import maps
from .calibration.equalize import apply_factors, equalize
from .calibration.exits import fit_exit
from .calibration.made import SIDE, drawn_pictures
from .calibration.plausibility import check_reading, looked_at
from .calibration.ranges import Observer, clip_ranges, search_ranges, set_weight_ranges
from .calibration.residual import fraction_for, largest_feature
from .calibration.rounding import fit_rounding
from .calibration.tensors import Tensors
from .calibration.tune import device_of, make_tuning
from .config import ConvertConfig
from .files import write_file
from .networks.convention import Convention
from .networks.detect import Detected, check_whole, detect, res_scale_of
from .nn import ConvertedNetwork
from .simulate import SimulatedGraph, SimulatedNetwork

# Recipe "best" aims at this many bits below the base bits, because real low-resolution images have more detail than most photos.
# Networks that sharpen get the whole base.
BUDGET_MARGIN = 0.45
SEARCH_IMAGES = 24  # the number of images on which ranges are searched
PROBED_IMAGES = 8  # the number of images on which sensitivities are measured
SEARCH_WORK, MAPS_WORK, EXIT_WORK, EQUALIZE_WORK, ROUNDING_WORK = 3, 3, 6, 6, 6  # in units of the progress
# Fine-tuning adds a drawing or text made by the program for each group of this many images, since photographs hold few outlines.
IMAGES_A_DRAWING = 5
SAVE_EVERY = 30.0  # seconds between two saves of a run that can be resumed

Progress = Callable[[int, int, str], None]
_Maps = tuple[tuple[float, float], dict[str, int]]  # image thresholds, and layer offsets by name


def calibrate(
    model: nn.Module | Mapping[str, Any],
    images: Iterable[torch.Tensor | str | Path],
    config: ConvertConfig | None = None,
    progress: Progress | None = None,
    *,
    res_scale: float | None = None,
    rgb_range: float | None = None,
    mean_shift: str | tuple[float, float, float] | None = None,
    channel_order: str = "rgb",
    weights_key: str | None = None,
    check: bool = True,
    start: SimulatedNetwork | ConvertedNetwork | None = None,
    resume: str | Path | None = None,
    device: torch.device | str = "cpu",
    own_resolution: Iterable[torch.Tensor | str | Path] | None = None,
    found: Detected | None = None,
) -> SimulatedNetwork:
    """Chooses every range, threshold and offset of a quantised network from images, fine-tunes the network for `config.steps`
    steps, and returns it as a simulation.

    model: a float network, which is recognised by its state dict (networks/detect.py), or that state dict, or a checkpoint that
        holds it.
    images: about 100 low-resolution images like those that the network will upscale, as float or uint8 tensors [N, 3, H, W] in
        0..255 or as paths of pictures. Random crops of at most `config.patch` pixels a side are taken from each image.
    progress: a function that is called with (work done, work in all, what is being done). One unit of work takes about a second.
    res_scale: the network's residual scale, which its state dict does not reveal. By default it is the `res_scale` of a module's
        blocks, or 1 where they have none.
    rgb_range, mean_shift, channel_order: the convention of the weights (`networks.convention.Convention`), which the state dict
        does not reveal either. By default the state dict and its layout decide. The calibrated network computes with RGB in 0..255
        in any case.
    weights_key: the name of the network to take, such as "generator_ema", where a checkpoint holds several.
    check: whether the float network is tried first. It upscales a few of the images after they were shrunk. ValueError is raised
        where the result is far worse than bicubic, and where it is better in another usual convention, which the message names.
        Images of noise, and images that are shrunk to less than 16 pixels a side, are not used for this.
    start: a calibrated or converted network of the same architecture, whose image thresholds and layer offsets are taken over. Only
        ranges are then chosen anew.
    resume: the path of a file that keeps the state of the fine-tuning. If the file exists, the run that wrote it is continued. With
        the same arguments the result is then the same as without the interruption. The file stays until the caller removes it.
    device: the device on which torch computes, "cpu" or "cuda", with an index where there are several. The result is on the CPU. A
        resumed run may continue on another device.
    own_resolution: pictures in their own resolution, in the same forms as `images`, for the case that `images` are shrunk pictures.
        They are read after `images` and serve only to choose the exit of easy tiles, in addition to `images`.
    found: the result of `networks.detect.detect` for this state dict. It is then not searched again, and res_scale, rgb_range,
        mean_shift, channel_order and weights_key have no effect.

    Recipe "paper" chooses weight ranges by the least squared error, and activation ranges and image thresholds as moving averages
    over batches in the float network. Layers whose standard deviation lies outside the percentiles get offsets of -1 or +1. After
    bit-aware clipping follows the three-step cycle of fine-tuning (calibration/tune.py).
    Recipe "best" chooses one weight range per output channel on the signed grid. It searches activation ranges layer by layer in
    the quantised network, and chooses layer offsets by measured sensitivity under a budget (calibration/maps.py). Then it
    fine-tunes weights, biases and ranges together, also on drawings and texts made by the program (calibration/made.py). At the end
    it finds the exit of easy tiles, which is the result's `exit` (`ConvertConfig.depths`). This is a linear filter fitted to the
    float network. It is used where a tile of the images bends so little that the filter lies nearer to the float network than few
    bits do (calibration/exits.py).

    Where `config.residual` asks for it, the features that pass the blocks by are held in 16 bits. Their unit, the result's
    `fraction`, is chosen from their largest magnitude over the images after everything else (calibration/residual.py).

    All random numbers are seeded: the same arguments give the same result on the same kind of machine. A layer that sees only one
    value, as when all images are flat, gets a range that holds this value exactly. The result's `report` says how long each stage
    took, what the loss was, and under "weights" which part of a checkpoint was taken.
    Raises TypeError and ValueError naming the argument, the rule and the value: for no images, for images smaller than 16 pixels a
    side or outside 0..255, for a network that is unknown, already calibrated or likely misread, for activations that are NaN or
    infinite, for a `resume` file of another run, and for a device that torch cannot use here.
    """
    device = checked_device(device)
    config = ConvertConfig() if config is None else config
    if not isinstance(config, ConvertConfig):
        raise TypeError(f"calibrate: config must be a ConvertConfig, got {type(config).__name__}")
    if start is not None and not isinstance(start, (SimulatedNetwork, ConvertedNetwork)):
        raise TypeError(f"calibrate: start must be a calibrated or converted network, got {type(start).__name__}")
    if isinstance(model, nn.Module):
        state: Mapping[str, Any] = model.state_dict()
        if res_scale is None:
            res_scale = res_scale_of(model)
    elif isinstance(model, Mapping):
        state = model
    else:
        raise TypeError(f"calibrate: model must be a torch.nn.Module or a state dict, got {type(model).__name__}")
    if found is None:
        try:
            convention = Convention(rgb_range, mean_shift, channel_order)
        except (TypeError, ValueError) as error:
            raise type(error)(f"calibrate: {error}") from error
        found = detect(state, 1.0 if res_scale is None else res_scale, convention=convention, weights_key=weights_key)
    if found.calibrated:
        raise ValueError("calibrate: model must be a float network, and this one is calibrated already")
    if isinstance(model, nn.Module):
        check_whole(found)
    if config.residual == "int16":
        try:
            found.spec.check_int16_residual(config.quantize)
        except ValueError as error:
            raise ValueError(f"calibrate: config.{error}") from error
    rng = random.Random(config.seed)
    windows = samples.read_images(images, config.patch, rng)
    if check:
        check_reading(state, found, looked_at(windows))
    simulated = SimulatedNetwork.from_float(state, config, found=found)
    taken = None if start is None else _maps_of(start, simulated)
    simulated.to(device)
    own = []
    if own_resolution is not None:
        own = samples.read_images(own_resolution, config.patch, random.Random(config.seed), "own_resolution")
    run = _Run(simulated, Pictures(windows, config), rng, progress)
    run.all_stages(taken, None if resume is None else Path(resume), [own, windows] if own else [windows])
    simulated.report = run.report() | {"weights": {"source": found.source, "left_out": list(found.left_out)}}
    return simulated.cpu().eval()


def calibrate_graph(
    model: SimulatedGraph,
    data: Tensors,
    progress: Progress | None = None,
    *,
    resume: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> SimulatedGraph:
    """Calibrates a traced network in place and returns it. It works as `calibrate`, except that the range of its input is found as
    all other ranges are, and that fine-tuning compares all outputs, each divided by its size (`measure_outputs`).

    model: the simulation, with its float weights in place. data: tensors that the network takes. Raises ValueError for activations
    that are NaN or infinite, a `resume` file of another run, and a device that torch cannot use here.
    """
    device = checked_device(device)
    model.to(device)
    rng = random.Random(model.config.seed)
    run = _Run(model, data, rng, progress)
    model.measure_outputs(run.batches)
    run.all_stages(None, None if resume is None else Path(resume), [])
    model.report = run.report() | {"weights": {"source": "", "left_out": []}}
    model.cpu().eval()
    return model


def checked_device(device: torch.device | str) -> torch.device:
    """The device that calibration computes on. Raises ValueError with the reason where torch cannot use it."""
    try:
        torch.empty(1, device=device).item()
        return torch.device(device)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"calibrate: device must be one that torch can use here, got {str(device)!r}: {reason}") from error


def _repeatable(device: torch.device) -> AbstractContextManager:
    """Inside this context convolutions on a GPU give the same result every time, and those in float32 have float32's precision."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


class Pictures:
    """The calibration images of a super-resolution network, [3, h, w] in 0..255."""

    def __init__(self, items: list[torch.Tensor], config: ConvertConfig):
        self.items, self.config = items, config

    def batches(self, patch: int, size: int, rng: random.Random) -> list[torch.Tensor]:
        """The calibration batches of these images (`samples.batches`)."""
        return samples.batches(self.items, patch, size, rng)

    def first(self, batches: list[torch.Tensor], count: int) -> torch.Tensor:
        """The first `count` images of the batches, as one batch (`samples.first`)."""
        return samples.first(batches, count)

    def queue(self, patch: int, size: int, rng: random.Random, candidates: int) -> samples.Epochs:
        """The source of the batches of fine-tuning, which include pictures that the program draws where the recipe is "best"."""
        items = self.items
        if self.config.recipe == "best":
            items = [*items, *drawn_pictures(len(items) // IMAGES_A_DRAWING, max(patch, SIDE), self.config.seed)]
        return samples.Epochs(items, patch, size, rng, candidates)


class _Run:
    """The stages of one calibration, with their time and progress."""

    def __init__(self, model: SimulatedNetwork, data: Pictures | Tensors, rng: random.Random, progress: Progress | None):
        self.model, self.config, self.data, self.rng, self.progress = model, model.config, data, rng, progress
        self.stages: dict[str, float] = {}
        self.losses: list[dict[str, float]] = []
        self.resumed_at = 0
        self.done, self.started = 0, time.perf_counter()
        self.device = device_of(model)
        self.batches = [batch.to(self.device) for batch in data.batches(self.config.patch, self.config.batch, rng)]
        why = model.spec.why_full_depth or model.spec.why_larger_tiles(self.config.depth_tile)
        self.finds_exit = self.config.finds_exit and not why
        self.exit_report: dict[str, Any] | None = {"share": 0.0, "why": why} if self.config.finds_exit and why else None
        in_16_bits = self.config.chosen("residual") == "int16"
        self.fixes_residual = in_16_bits and not model.spec.why_float_residual(self.config.quantize)
        self.residual_report: dict[str, Any] | None = None
        self.last_work = EXIT_WORK * self.finds_exit + len(self.batches) * self.fixes_residual  # work after fine-tuning
        self.total = len(self.batches) + self.config.steps + self.last_work
        if self.config.chosen("act_ranges") == "search":
            self.total += SEARCH_WORK * (1 + self.config.adaptive)
        else:
            self.total += self.config.bit_aware_clipping
        self.factors: torch.Tensor | None = None
        self.equalize_report: dict[str, float] | None = None
        self.total += (EQUALIZE_WORK + ROUNDING_WORK * (model.weight_grid == "signed")) * model.equalized
        self.total += MAPS_WORK * (self.config.adaptive and self.config.chosen("layer_map") == "sensitivity")

    def all_stages(self, taken: _Maps | None, resume: Path | None, pictures: list[list[torch.Tensor]]) -> None:
        """Runs all stages, or those that an interrupted run has left. pictures: the kinds of pictures with which the exit is
        found."""
        config = self.config
        identity = _identity(config, self.data.items, self.model, taken) if resume is not None else ""
        kept = _load_run(resume, identity, config) if resume is not None and resume.exists() else None
        with torch.no_grad(), _repeatable(self.device):
            if kept is None:
                self.ranges_and_maps(taken)
            if config.steps:
                self.tune(kept, resume, identity)
            if self.fixes_residual:
                self.fix_residual()
            if self.finds_exit:
                self.find_exit(pictures)

    def advance(self, stage: str, since: float, work: int = 1) -> float:
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - since
        self.done += work
        if self.progress is not None:
            self.progress(self.done, self.total, stage)
        return now

    def ranges_and_maps(self, taken: _Maps | None) -> None:
        model, config = self.model, self.config
        clock = time.perf_counter()
        if model.equalized:
            found = equalize(model, self._looked_at(PROBED_IMAGES), self._generator())
            self.factors = found.factors
            self.equalize_report = {"before": found.before, "after": found.after}
            clock = self.advance("equalize", clock, EQUALIZE_WORK)
        set_weight_ranges(model)
        observer = Observer(model)
        for batch in self.batches:
            observer.update(batch)
            clock = self.advance("ranges", clock)
        observer.store()
        if config.adaptive:
            thresholds = maps.image_thresholds(self.batches, config)
            if taken is not None:
                thresholds = taken[0]
            model.measure_l.fill_(thresholds[0])
            model.measure_u.fill_(thresholds[1])
        searched, sensitive = config.chosen("act_ranges") == "search", config.chosen("layer_map") == "sensitivity"
        batch = self._looked_at(SEARCH_IMAGES)
        if searched:
            search_ranges(model, batch)
            clock = self.advance("ranges", clock, SEARCH_WORK)
        if config.adaptive:
            if taken is not None:
                offsets = taken[1]
            elif not sensitive:
                offsets = maps.layer_offsets_by_deviation(observer.deviations, config.layer_percentile)
            else:
                offsets = self._allocate()
            for conv in model.quantized_convs():
                if conv.adaptive:
                    conv.measure_layer.fill_(float(offsets[conv.name]))
            if sensitive:
                clock = self.advance("bit maps", clock, MAPS_WORK)
        if searched and config.adaptive:
            search_ranges(model, batch)
            clock = self.advance("ranges", clock, SEARCH_WORK)
        elif config.bit_aware_clipping and not searched:
            clip_ranges(model, self.batches[0])
            clock = self.advance("clipping", clock)
        if model.equalized and model.weight_grid == "signed":
            fit_rounding(model, batch, self._generator())
            self.advance("rounding", clock, ROUNDING_WORK)

    def _looked_at(self, count: int) -> torch.Tensor:
        """The first `count` images, on which ranges and sensitivities are found. For a network that sharpens a third of them are
        drawings, because outlines bring features several times as large as photographs do."""
        if not self.model.equalized:
            return self.data.first(self.batches, count)
        photos = samples.first(self.batches, count - count // 3)
        drawn = drawn_pictures(count // 3, max(photos.shape[2:]), self.config.seed)
        return samples.first([photos, torch.stack(drawn).to(self.device)], count)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed)

    def _allocate(self) -> dict[str, int]:
        """The layer offsets, by name, that lose least while the calibration images keep to the budget of bits or, for objective
        "latency", to the time of the network that keeps to it."""
        model, config = self.model, self.config
        layers = [conv for conv in model.quantized_convs() if conv.adaptive]
        if not layers:
            return {}
        damage = maps.sensitivities(model, self._looked_at(PROBED_IMAGES), self._generator())
        base = {conv.name: conv.act_bits for conv in layers}
        counted = [conv for conv in model.quantized_convs() if not conv.end]
        image_offset = float(torch.cat([model.image_offsets(batch).float() for batch in self.batches]).mean())
        margin = 0 if model.equalized else BUDGET_MARGIN
        target = config.act_bits - margin if config.target_bits is None else config.target_bits
        fixed = sum(conv.act_bits for conv in counted if not conv.adaptive)
        budget = target * len(counted) - fixed - image_offset * len(layers)
        bits = {conv.name: {b: float(b) for b in damage[conv.name]} for conv in layers}
        by_bits = maps.allocate(damage, bits, base, budget)
        if config.objective == "bits":
            return by_bits
        from .calibration.latency import layer_times

        times = layer_times(model.cpu())
        model.to(self.device)
        seconds = sum(times[name][min(max(base[name] + offset, 2), 8)] for name, offset in by_bits.items())
        return maps.allocate(damage, times, base, seconds)

    def tune(self, kept: dict[str, Any] | None, resume: Path | None, identity: str) -> None:
        config = self.config
        rng = random.Random(config.seed + 1)
        if kept is None:
            tuning = make_tuning(self.model)
        else:
            try:
                if kept["factors"] is not None:
                    self.factors, self.equalize_report = kept["factors"].to(self.device), kept["equalized"]
                    apply_factors(self.model, self.factors)
                tuning = make_tuning(_loaded(self.model, kept["tuning"]["model"]))
                tuning.restore(kept["tuning"])
                rng.setstate(kept["rng"])
                self.losses, self.stages = kept["losses"], kept["stages"]
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(f"calibrate: resume={resume} is damaged ({type(error).__name__}): remove it") from error
            self.resumed_at = tuning.done
        settings = config.tuning
        assert settings is not None, "which a ConvertConfig fills in"
        queue = self.data.queue(settings.patch, settings.batch, rng, tuning.candidates)
        if kept is not None:
            queue.order = kept["order"]
        others = self.total - config.steps
        self.done = others - self.last_work + tuning.done
        clock = saved = time.perf_counter()

        def keep(path: Path) -> None:
            tuned = tree_map_only(torch.Tensor, torch.Tensor.cpu, tuning.state())
            state = {"identity": identity, "config": config.to_dict(), "tuning": tuned, "rng": rng.getstate()}
            buffer = io.BytesIO()
            state |= {"factors": None if self.factors is None else self.factors.cpu(), "equalized": self.equalize_report}
            torch.save(state | {"order": queue.order, "losses": self.losses, "stages": self.stages}, buffer)
            write_file(path, buffer.getvalue())

        if resume is not None and kept is None:
            keep(resume)
        whole = True  # While no step is half done, the state can be saved, and a run that resumes it gives the same result.
        try:
            while tuning.done < tuning.end:
                with _interrupted_afterwards():
                    whole = False
                    if tuning.repeats and tuning.done % tuning.repeats == 0:
                        queue.restart(config.seed + 1)
                    batch = queue.next().to(self.device)
                    self.losses.append(tuning.step(batch))
                    whole = True
                self.total = others + tuning.end
                clock = self.advance("fine-tuning", clock)
                if resume is not None and clock - saved > SAVE_EVERY:
                    keep(resume)
                    saved = clock
        except KeyboardInterrupt:
            if resume is not None and whole:
                keep(resume)
            raise
        finally:
            tuning.finish()

    def fix_residual(self) -> None:
        """Chooses the unit of features of 16 bits from all calibration images."""
        clock, largest = time.perf_counter(), 0.0
        for batch in self.batches:
            largest = max(largest, largest_feature(self.model, batch))
            clock = self.advance("residual", clock)
        self.model.fraction = fraction_for(largest)
        self.residual_report = {"largest": largest, "fraction": self.model.fraction}

    def find_exit(self, pictures: list[list[torch.Tensor]]) -> None:
        """Fits the network's exit to crops from each kind of pictures in turn, and to pictures made by the program."""
        clock = time.perf_counter()
        self.model.exit, self.exit_report = fit_exit(self.model, pictures, self.device)
        self.advance("exit", clock, EXIT_WORK)

    def report(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self.started,
            "stages": [{"name": name, "seconds": seconds} for name, seconds in self.stages.items()],
            "images": len(self.data.items),
            "steps": len(self.losses),
            "resumed_at": self.resumed_at,
            "losses": self.losses,
            "equalized": self.equalize_report,
            "residual": self.residual_report,
            "exit": self.exit_report,
        }


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Inside this context Ctrl-C, and any other signal that Python handles, waits for the end; a second signal comes through at
    once."""
    handlers: dict[int, Callable] = {}
    if threading.current_thread() is threading.main_thread():  # other threads get no signals
        handlers = {number: handler for number in (SIGINT, SIGTERM) if callable(handler := signal.getsignal(number))}
    waiting: list[tuple[Callable, tuple]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if waiting:
            handlers[number](number, frame)
        waiting.append((handlers[number], (number, frame)))

    for number in handlers:
        signal.signal(number, wait)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if waiting:
        handler, arguments = waiting[0]
        handler(*arguments)


def _loaded(model: SimulatedNetwork, state: dict[str, torch.Tensor]) -> SimulatedNetwork:
    model.load_state_dict(state)
    return model


def _maps_of(start: SimulatedNetwork | ConvertedNetwork, model: SimulatedNetwork) -> _Maps:
    """The image thresholds and layer offsets of a calibrated network. Raises ValueError when they do not fit `model`."""
    if isinstance(start, ConvertedNetwork):
        thresholds = start.thresholds
        offsets = {name: conv.layer_offset for name, conv in start.parameters_by_name.items() if conv.adaptive}
    else:
        adaptive = start.config.adaptive
        thresholds = (start.measure_l.item(), start.measure_u.item()) if adaptive else None
        offsets = {conv.name: conv.layer_offset for conv in start.quantized_convs() if conv.adaptive}
    if thresholds is None or set(offsets) != {conv.name for conv in model.quantized_convs() if conv.adaptive}:
        raise ValueError(
            "calibrate: start must be a calibrated network with the same adaptive convolutions, and this one has others"
        )
    return thresholds, offsets


def _identity(config: ConvertConfig, windows: list[torch.Tensor], model: SimulatedNetwork, taken: _Maps | None) -> str:
    """A digest of everything on which the result of a calibration depends."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    digest.update(repr((model.spec, taken)).encode())
    for tensor in [*windows, *model.float_weights.values()]:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _load_run(path: Path, identity: str, config: ConvertConfig) -> dict[str, Any]:
    try:
        kept = torch.load(path, weights_only=True)
        other, of = dict(kept["config"]), kept["identity"]
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"calibrate: resume={path} is no state of a calibration ({type(error).__name__}): remove it") from error
    if of != identity:
        mine = config.to_dict()
        differing = [f"{key} was {other.get(key)!r} and is {mine[key]!r}" for key in mine if mine[key] != other.get(key)]
        why = "; ".join(differing) or "other images or another network"
        raise ValueError(f"calibrate: resume={path} is of a run with other settings: {why}; remove it to start afresh")
    return kept
