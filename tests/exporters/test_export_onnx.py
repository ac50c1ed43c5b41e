"""Exported ONNX: layer by layer within its bounds in ONNX Runtime, whole files for any size, and what cannot be written."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from imported_networks import SPECS, network_of
from needs import needs
from onnx_layers import check_file, run_onnx
from published_families import FAMILIES
from small import images, one_thread, small_edsr  # noqa: F401
from torch import nn
from traced_modules import Compact, Detector, ResNeXt, UNet, WindowAttention

from adabm_kernels import ConvertConfig, builtin_models, convert_model, load, save
from adabm_kernels.exporters.onnx import export_onnx
from adabm_kernels.graph.nodes import Activation, Affine, Graph, Pad, Pool, Resize
from adabm_kernels.importers.reading import read_known
from adabm_kernels.networks.detect import detect
from adabm_kernels.nn import ConvertedNetwork

pytestmark = needs("onnxruntime")

KEYS = {"vdsr": "x3", "fsrcnn": "x2"}  # families whose weights do for several scales, and which is meant here
CONFIGS = {
    "w6a6": ConvertConfig(6, 6, recipe="best", batch=1),
    "w4a4": ConvertConfig(4, 4, recipe="best", batch=1),
    "odd": ConvertConfig(4, 4, recipe="paper", batch=1, tail="staged"),
    "body": ConvertConfig(8, 4, recipe="paper", batch=1, quantize="body"),
}


@functools.cache
def converted(name: str, config: str = "w6a6") -> ConvertedNetwork:
    network = network_of(SPECS[name]) if name in SPECS else FAMILIES[name]().eval()
    return convert_model(network, [images(1, 3, 16, 17)], CONFIGS[config], check=False, traced=False, weights_key=KEYS.get(name))


@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize(
    "name, config, bits",
    [
        ("edsr", "w6a6", "auto"),  # two digits, a stream of 16 bits, the upsampler in one piece
        ("edsr", "w4a4", 4),
        ("edsr", "odd", 8),
        ("edsr_scaled", "body", 6),
        ("rdn", "w4a4", 4),
        ("srresnet_unit", "w6a6", 8),
        ("srvgg", "w4a4", 6),
        ("rrdb", "w4a4", 4),
        ("carn", "odd", 4),
        ("imdn", "w4a4", 2),
    ],
)
def test_every_layer_is_within_its_bound(name: str, config: str, bits: str | int, optimised: bool) -> None:
    model = converted(name, config)
    x = images(2, 3, 11, 14)
    assert check_file(model, x, bits, optimised) <= 2
