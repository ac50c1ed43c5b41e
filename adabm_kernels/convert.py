"""The function convert_model, which turns a float or calibrated network into one that computes with integer convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .calibrate import calibrate, calibrate_graph
from .calibration.tensors import HINT, Tensors, read_tensors
from .calibration.tracing import traced_spec
from .config import ConvertConfig
from .graph.nodes import Conv
from .importers.spandrel import network_of
from .networks.convention import Convention
from .networks.detect import check_modules, check_whole, detect, res_scale_of
from .networks.known import NONE_OF_THEM
from .nn import ConvertedNetwork, from_simulated
from .nn.contexts import as_imported
from .simulate import SimulatedGraph, SimulatedNetwork


@as_imported()
def convert_model(
    model: nn.Module | Mapping[str, Any],
    calibration: Iterable[torch.Tensor | str | Path] | None = None,
    config: ConvertConfig | None = None,
    *,
    res_scale: float | None = None,
    rgb_range: float | None = None,
    mean_shift: str | tuple[float, float, float] | None = None,
    channel_order: str = "rgb",
    weights_key: str | None = None,
    check: bool = True,
    traced: bool | None = None,
    strict: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> ConvertedNetwork:
    """Returns a copy of `model` that computes with integer convolutions and with bit-widths that AdaBM chooses at run time.

    model: one of the known networks, or any other module, which is then traced.
        The known networks are EDSR, RDN, SRResNet, SRVGGNetCompact, RRDBNet, SPAN, IMDN, RFDN, CARN, VDSR, DnCNN, ESPCN and FSRCNN,
        recognised by the keys of their state dict (networks/detect.py). Each may be given as a float module, as its state dict, as
        a checkpoint that holds the state dict, as a calibrated AdaBM state dict, or as a SimulatedNetwork. A module may be of the
        user's own class: only its state dict is read. An error names every layer of torch in it that computes something else than
        the recognised network does.
        A descriptor of the package spandrel stands for its network, which takes pixels in 0..1 where it is none of these.
        Any other module must have convolutions, be in eval mode and take one tensor [N, C, H, W] (docs/any_network.md).
    calibration: low-resolution images, as float tensors [N, 3, H, W] in 0..255 or as paths; for a traced module, tensors
        [N, C, H, W] with the channels, range and size that it takes. A float network needs them, and for a calibrated one they are
        refused. A generator runs with torch's settings as they are after import (nn.contexts.as_imported): float32 is the default
        dtype, the CPU is the default device, and autocast is off.
    config: the bit-widths and calibration settings, by default ConvertConfig(). A SimulatedNetwork has its own config, which is
        taken.
    res_scale: the network's residual scale, which its state dict does not reveal. By default it is the `res_scale` of a module's
        blocks, or 1 where they have none.
    rgb_range, mean_shift, channel_order, weights_key, check: as for `calibrate`. The converted network and its `float_model()` take
        and give RGB in 0..255, whatever the convention of the weights is.
    traced: whether to trace the module. None traces a module that is none of the known networks, unless one of the arguments
        res_scale to weights_key is given, since these describe a known network. True traces every module, and False traces none.
        A traced network takes and gives the same tensors as the module.
    strict: whether a layer with weights that would stay in floats is an error, which names the layer, its place and the reason.
        If False, the report lists such layers under "floats". This concerns traced modules only: in a known network the settings
        alone decide which layers stay in floats.
    device: the device on which torch calibrates, "cpu" or "cuda". The converted network is on the CPU.
    progress: a function that is called during calibration with (work done, work in all, what is being done). One unit of work takes
        about a second.

    The `report` of the result says in plain values what became of the network: "layers" lists the quantised convolutions with their
    bits, "skipped" the names of the other convolutions, "floats" by name everything that is computed in floats between them and
    why, "backend" the chosen backend, and "calibration" the report of the calibration.

    Raises TypeError or ValueError naming the argument, the rule and the value.
    """
    model = network_of(model)
    if isinstance(model, ConvertedNetwork):
        raise ValueError("convert_model: model is converted already")
    if traced is not None and not isinstance(traced, bool):
        raise TypeError(f"convert_model: traced must be True, False or None, got {traced!r}")
    if isinstance(model, SimulatedNetwork):
        if config is not None and config != model.config:
            raise ValueError("convert_model: config must be left out for a SimulatedNetwork, which has its own")
        if calibration is not None:
            raise ValueError("convert_model: calibration must be left out: the model is calibrated already")
        return _from_simulated(model)
    if isinstance(model, nn.Module):
        state: Mapping[str, Any] = model.state_dict()
    elif isinstance(model, Mapping):
        state = model
        if traced:
            raise TypeError("convert_model: model must be a torch.nn.Module to be traced, got a state dict")
    else:
        hint = " (adabm_kernels.read_network(path) reads the network in a file)" if isinstance(model, (str, Path)) else ""
        raise TypeError(f"convert_model: model must be a torch.nn.Module or a state dict, got {type(model).__name__}{hint}")
    config = ConvertConfig() if config is None else config
    if not isinstance(config, ConvertConfig):
        raise TypeError(f"convert_model: config must be a ConvertConfig, got {type(config).__name__}")
    said = (res_scale, rgb_range, mean_shift, channel_order, weights_key) != (None, None, None, "rgb", None)
    try:
        convention = Convention(rgb_range, mean_shift, channel_order)
    except (TypeError, ValueError) as error:
        raise type(error)(f"convert_model: {error}") from error
    try:
        if traced:
            raise ValueError("traced=True was asked for")
        if res_scale is None and isinstance(model, nn.Module):
            res_scale = res_scale_of(model)
        found = detect(state, 1.0 if res_scale is None else res_scale, convention=convention, weights_key=weights_key)
        if isinstance(model, nn.Module):
            check_whole(found)
            if not found.calibrated:
                check_modules(model, found.spec)
    except ValueError as error:
        if traced is False or said or not isinstance(model, nn.Module):
            raise
        try:
            return _from_simulated(_calibrated_graph(model, calibration, config, strict, device, progress))
        except ValueError as why:
            if traced or not str(why).startswith("trace: "):
                raise
            why_not = str(why).removeprefix("trace: ")
            if NONE_OF_THEM in str(error):
                raise ValueError(f"convert_model: the module is no known network, and cannot be traced: {why_not}") from why
            raise ValueError(f"convert_model: the module cannot be traced ({why}), and it is no known network ({error})") from why
    if found.calibrated:
        if calibration is not None:
            raise ValueError("convert_model: calibration must be left out: the state dict is calibrated already")
        return _from_simulated(SimulatedNetwork.from_state(state, config, found=found))
    if calibration is None:
        raise ValueError(
            "convert_model: calibration is needed for a float network: pass low-resolution images, as float tensors "
            "[N, 3, H, W] in 0..255 or as paths (about 100 are enough)"
        )
    if config.tail == "collapsed" and not (config.quantize == "full" and found.spec.linear_upsampler):
        raise ValueError(
            "convert_model: config.tail='collapsed' needs a fully quantised network with a staged tail without activations, got "
            f"quantize={config.quantize!r} for {found.spec}"
        )
    return _from_simulated(calibrate(state, calibration, config, progress, check=check, device=device, found=found))


def _calibrated_graph(
    module: nn.Module,
    calibration: Iterable[Any] | None,
    config: ConvertConfig,
    strict: bool,
    device: torch.device | str,
    progress: Callable[[int, int, str], None] | None,
) -> SimulatedGraph:
    """Traces and calibrates a module that is none of the known networks, and returns its simulation."""
    if calibration is None:
        raise ValueError(f"convert_model: calibration is needed for a float network: pass {HINT} (about 100 are enough)")
    for setting, usual in (("tail", "collapsed"), ("residual", "int16"), ("input_range", "pixels")):
        if getattr(config, setting) == usual:
            raise ValueError(f"convert_model: config.{setting} must be 'auto' for a traced module, got {usual!r}")
    data = read_tensors(calibration)
    spec, state = traced_spec(module, data)
    if strict and (floats := spec.layers_in_floats(config.quantize)):
        places = "; ".join(f"'{name}': {why}" for name, why in floats.items())
        raise ValueError(f"convert_model: strict must be False where layers stay in floats, here {places}")
    if not spec.quantized(config.quantize):
        raise ValueError(
            f"convert_model: {type(module).__name__} must have a convolution that can be quantised with "
            f"quantize={config.quantize!r}, but has none"
        )
    return calibrate_graph(SimulatedGraph.of_graph(spec, state, config), Tensors(data, spec), progress, device=device)


def _from_simulated(model: SimulatedNetwork) -> ConvertedNetwork:
    quantized = {conv.name: conv for conv in model.quantized_convs()}
    converted = from_simulated(model)
    converted.report = {
        "layers": [
            {
                "name": conv.name,
                "weight_bits": conv.weight_bits,
                "act_bits": conv.act_bits,
                "layer_offset": conv.layer_offset,
            }
            for conv in quantized.values()
        ],
        "skipped": [node.key for node in model.graph.nodes if isinstance(node, Conv) and node.key not in quantized],
        "floats": converted.in_floats(),
        "backend": converted.choice,
        "calibration": model.report,
    }
    return converted
