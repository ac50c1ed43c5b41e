"""Exported ONNX: layer by layer within its bounds in ONNX Runtime, whole files for any size, and what cannot be written."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import onnx
import pytest
import torch
from imported_networks import SPECS, network_of
from needs import needs
from onnx_layers import check_file, run_onnx
from published_families import FAMILIES
from small import images, one_thread  # noqa: F401
from torch import nn
from torch.utils._pytree import tree_leaves
from traced_modules import Detector, Oddments, ResNeXt, UNet, WindowAttention

from adabm_kernels import ConvertConfig, builtin_models, convert_model, export_onnx, load, save
from adabm_kernels.exporters import float_calls
from adabm_kernels.exporters.float_operators import write_node
from adabm_kernels.exporters.writing import Writing
from adabm_kernels.graph.trace import trace
from adabm_kernels.importers.reading import read_known
from adabm_kernels.networks.detect import detect
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.nn import ConvertedNetwork

pytestmark = needs("onnxruntime")

KEYS = {"vdsr": "x3", "fsrcnn": "x2"}  # families whose weights do for several scales, and which is meant here
CONFIGS = {
    "w6a6": ConvertConfig(6, 6, recipe="best", batch=1),
    "w4a4": ConvertConfig(4, 4, recipe="best", batch=1),
    "odd": ConvertConfig(4, 4, recipe="paper", batch=1, tail="staged"),
    "body": ConvertConfig(8, 4, recipe="paper", batch=1, quantize="body"),
}


NETWORKS = {**SPECS, "rrdb_x2": RRDBSpec(2, 1, 8, 4, unshuffle=2)}
# Families whose files are not read as themselves: they take the spread of channels, pad small pictures, or enlarge pictures with
# antialiasing.
NOT_READ = ("imdn", "rfdn", "vdsr", "rrdb_x2")


@functools.cache
def converted(name: str, config: str = "w6a6") -> ConvertedNetwork:
    torch.manual_seed(0)
    network = network_of(NETWORKS[name]) if name in NETWORKS else FAMILIES[name]().eval()
    return convert_model(network, [images(1, 3, 16, 18)], CONFIGS[config], check=False, traced=False, weights_key=KEYS.get(name))


# ---- converted networks


@pytest.mark.parametrize(
    "name, config, bits",
    [
        ("edsr", "w6a6", "auto"),  # two digits, a stream of 16 bits, the upsampler in one piece
        ("edsr", "w4a4", 4),
        ("edsr", "odd", 8),
        ("edsr_scaled", "body", 6),
        ("rdn", "w4a4", 4),
        ("srresnet_unit", "w6a6", 8),
        ("srvgg", "odd", 6),
        ("rrdb", "odd", 4),
        ("carn", "odd", 4),
        ("imdn", "odd", 2),
    ],
)
def test_every_layer_is_within_its_bound(name: str, config: str, bits: str | int) -> None:
    """As ONNX Runtime optimises the file, and as it is written."""
    model = converted(name, config)
    for size, optimised in (((2, 3, 11, 14), True), ((1, 3, 5, 5), False)):
        assert check_file(model, images(*size), bits, optimised) <= 2


def test_the_file_holds_the_bits_and_says_what_it_is(tmp_path: Path) -> None:
    model, path = converted("edsr", "w4a4"), tmp_path / "m.onnx"
    made = export_onnx(model, path, bits=3)
    assert made.bits == model.fixed_bits(3) and set(made.bits.values()) == {3, 8} and made.smallest == 5
    held = onnx.load(path)
    said = {entry.key: entry.value for entry in held.metadata_props}
    assert (said["adabm.network"], said["adabm.scale"], said["adabm.bits"]) == ("edsr", "2", "3")
    assert said["adabm.layers"].split(",") == [f"{name}:{bits}" for name, bits in made.bits.items()]
    kinds = [node.op_type for node in held.graph.node]
    assert kinds.count("QuantizeLinear") == len(made.bits) - 1  # the last convolution is a part of the collapsed upsampler
    assert made.bytes == path.stat().st_size
    model.set_bits(3)
    x = images(1, 3, 9, 12)
    assert run_onnx(path, x)[0].shape == tuple(model(x).shape)
    assert export_onnx(model, path).bits == {name: int(bits) for name, bits in calibrated(model).items()}
    model.set_bits("auto")


def calibrated(model: ConvertedNetwork) -> dict[str, torch.Tensor]:
    """The bits of an image that gets neither more nor fewer."""
    model.set_bits("auto")
    return model.layer_bits(None, offset=torch.zeros(1, dtype=torch.int32))


# ---- float networks


@pytest.mark.parametrize("name", [*NETWORKS, *FAMILIES])
def test_float_networks_are_written_and_read_again(name: str, tmp_path: Path) -> None:
    """For pictures of any size and number, also for those that are too small to be mirrored."""
    model, path = converted(name, "odd"), tmp_path / "m.onnx"
    network: nn.Module = model.float_model()
    assert export_onnx(model, path, floats=True).bits == {}
    for size in ((2, 3, 17, 14), (1, 3, 4, 3)):
        x = images(*size)
        with torch.no_grad():
            want = network(x)
        got = torch.from_numpy(run_onnx(path, x)[0])
        torch.testing.assert_close(got, want, rtol=0, atol=8e-6 * max(255.0, float(want.abs().max())))
    if name in NOT_READ:
        with pytest.raises(ValueError, match="antialiasing|of a kind that is not read|is none of EDSR"):
            read_known(path)
    else:
        state, res_scale = read_known(path)
        assert detect(state, res_scale).spec == model.spec


# ---- traced networks


@functools.cache
def traced(module: type[nn.Module]) -> ConvertedNetwork:
    torch.manual_seed(0)
    return convert_model(module().eval(), [torch.rand(1, 3, 16, 16)], CONFIGS["odd"], traced=True)


@pytest.mark.parametrize("module", [Detector, UNet])
def test_layers_of_traced_networks_are_within_their_bounds(module: type[nn.Module]) -> None:
    assert check_file(traced(module), torch.rand(2, 3, 20, 24), 6, optimised=True) <= 2


@pytest.mark.parametrize("module", [ResNeXt, WindowAttention, pytest.param(Oddments, marks=pytest.mark.slow)])
def test_calls_of_torch_are_written(module: type[nn.Module]) -> None:
    """The graph of a module alone, without conversion, for other sizes than it was traced with."""
    torch.manual_seed(0)
    network, x = module().eval(), torch.rand(2, 3, 20, 24)
    found = trace(network, torch.rand(1, 3, 16, 16), any_size=False)
    to, names = Writing(3), {found.graph.inputs[0]: "x"}
    for node in found.graph.nodes:
        names[node.name] = write_node(to, node, [names[name] for name in node.inputs], found.state.get)
    outputs = {f"y{i}": names[name] for i, name in enumerate(found.graph.outputs)}
    got = run_onnx(to.model(outputs, {}, "").SerializeToString(), x)
    with torch.no_grad():
        want = tree_leaves(network(x))
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_what_cannot_be_written_is_named_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = traced(Detector), tmp_path / "m.onnx"
    assert export_onnx(model, path).outputs == ("y0", "y1")
    path.write_bytes(b"before")
    monkeypatch.delitem(float_calls._RULES, "flatten")
    with pytest.raises(ValueError, match=r"^export_onnx: 'flatten': no operators of ONNX are written for the call flatten \(torch"):
        export_onnx(model, path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


# ---- bad input


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = converted("edsr", "odd"), tmp_path / "m.onnx"
    for bits in (1, 9, True, "4", 4.0):
        with pytest.raises(ValueError, match=r"^export_onnx: bits must be 'auto' or 2\.\.8, got "):
            export_onnx(model, path, bits=bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^export_onnx: bits must be left out for the float network, got 4"):
        export_onnx(model, path, bits=4, floats=True)
    with pytest.raises(ValueError, match="^export_onnx: path must end in .onnx, got '.*m.pt'"):
        export_onnx(model, tmp_path / "m.pt")
    with pytest.raises(TypeError, match=r"^export_onnx: model must be a converted network .*, got EDSR"):
        export_onnx(model.float_model(), path)  # type: ignore[arg-type]
    save(model, tmp_path / "m.safetensors", include_float=False)
    with pytest.raises(ValueError, match="^export_onnx: floats must be False for this model, which carries no float weights"):
        export_onnx(load(tmp_path / "m.safetensors"), path, floats=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="^export_onnx: writing ONNX needs the package onnx: pip install onnx$"):
        export_onnx(model, path)
    assert not path.exists()


# ---- the command


def test_the_command(tmp_path: Path, adabm) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "m.onnx"
    status, out, err = adabm("export", "edsr_x4_w4a4", "-o", path, "--bits", "4", "--depth", "full")
    assert (status, err) == (0, "") and "4 in the adaptive layers" in out and "all blocks everywhere" in out
    x = images(1, 3, 12, 15)
    model = load(builtin_models()["edsr_x4_w4a4"])
    model.set_bits(4)
    model.set_depth("full")
    assert run_onnx(path, x)[0].shape == tuple(model(x).shape)
    before = path.read_bytes()
    for options, words in {
        (): f"--output must not exist yet without --existing replace, got '{path}'",
        (
            "--existing",
            "replace",
            "--float",
            "--bits",
            "4",
        ): "--bits must be left out with --float, whose network has no bits, got 4",
        ("--bits", "9"): "argument --bits: must be an integer from 2 to 8, got '9'",
        ("--depth", "auto"): "argument --depth: invalid choice: 'auto' (choose from 'full')",
    }.items():
        status, out, err = adabm("export", "edsr_x4_w4a4", "-o", path, *options)
        assert (status, out) == (2, "") and words in err.replace("choose from full", "choose from 'full'"), err
    assert path.read_bytes() == before
    assert adabm("export", "edsr_x4_w4a4", "-o", path, "--float", "--overwrite")[0] == 0 and path.read_bytes() != before
    for target, words in {tmp_path / "m.pt": "must end in .onnx", tmp_path / "no" / "m.onnx": "does not exist"}.items():
        status, _, err = adabm("export", "edsr_x4_w4a4", "-o", target)
        assert status == 2 and words in err
