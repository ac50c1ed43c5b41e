"""The cuda backend behind the operators: quantisation, image measure, bits, and whole networks, on the host runtime."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_calls import cuda_on_host
from cuda_library import buffers, host_library, policy
from problems import PROBLEMS, ConvProblem, instantiate
from small import one_thread, poison_empty  # noqa: F401
from with_exits import an_exit, pictures, with_exit

import adabm_kernels
from adabm_kernels import ops
from adabm_kernels.backends import cuda
from adabm_kernels.backends.call import Conv, Outputs, Quantization, RunConv2d, RunQuantize, Target
from adabm_kernels.backends.cuda import _place as real_place
from adabm_kernels.config import ConvertConfig
from adabm_kernels.image_bits import bits_by_rule, image_offsets, measure_images
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.nn import network
from adabm_kernels.ops import ready
from adabm_kernels.quantize import act_grid, pack_codes, padded_channels, unpack_codes
from adabm_kernels.registry import Choice


@pytest.fixture(autouse=True)
def on_host() -> Iterator[None]:
    """Calls are made ready anew in each test, as some put other functions in the backend's place."""
    host_library()
    ready.READY.clear()
    with cuda_on_host():
        yield
    ready.READY.clear()


# ---- quantisation


def features(n: int, c: int, h: int, w: int, layout: str) -> torch.Tensor:
    """float32 [N, C, H, W], some values out of range or not a number, in a memory layout."""
    x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(c)) * 3
    x.view(-1)[::7], x.view(-1)[3] = 100.0, float("nan")
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x[:, :, :, ::1] if layout == "nchw" else torch.cat([x, x], 1)[:, :c]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice"])
@pytest.mark.parametrize("channels", [3, 16, 21])
def test_quantize_equals_the_reference_in_a_mixed_batch(channels: int, layout: str, packed: bool) -> None:
    bits = torch.tensor([2, 3, 4, 5, 6, 7, 8], dtype=torch.int32)
    x, grid = features(7, channels, 5, 9, layout), act_grid(-2.0, 3.5)
    for shift in (None, torch.randn(channels, generator=torch.Generator().manual_seed(1))):
        want = ops.quantize(x, grid, bits, shift=shift, backend="reference")
        got = ops.quantize(x, grid, bits, shift=shift, packed_codes=packed, backend="cuda")
        assert torch.equal(unpack_codes(got, bits) if packed else got, want)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("targets", [1, 3, 19])  # 19: more than one launch takes
def test_quantising_on_many_grids_is_quantising_on_each(targets: int, layout: str, packed: bool) -> None:
    x, g = features(3, 10, 4, 5, layout), torch.Generator().manual_seed(targets)
    grids = [act_grid(-1.0 - i, 2.0 + i / 2) for i in range(targets)]
    bits = [torch.randint(2, 9, (3,), generator=g, dtype=torch.int32) for _ in range(targets)]
    starts = [4 * (i % 3) for i in range(targets)]
    before = [torch.randint(0, 4, (3, 4, 5, 24), dtype=torch.uint8, generator=g) for _ in range(targets)]
    if packed:
        want, got = ([pack_codes(y, b) for y, b in zip(before, bits, strict=True)] for _ in range(2))
        for grid, own_bits, start, y_q in zip(grids, bits, starts, want, strict=True):
            ops.quantize_out(x, grid, own_bits, y_q, packed_codes=True, start=start, backend="reference")
        with buffers([x, *grids, *bits], got):
            ops.quantize_many_out(x, grids, bits, got, packed_codes=True, starts=starts, backend="cuda")
    else:
        want, got = ([y.clone() for y in before] for _ in range(2))
        for grid, own_bits, start, y_q in zip(grids, bits, starts, want, strict=True):
            ops.quantize_out(x, grid, own_bits, y_q[..., start : start + 12], backend="reference")
        ops.quantize_many_out(x, grids, bits, [y[..., s : s + 12] for y, s in zip(got, starts, strict=True)], backend="cuda")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("start, channels", [(0, 8), (4, 8), (8, 10), (12, 5)])
@pytest.mark.parametrize("packed", [False, True])
def test_quantize_into_a_slice_leaves_the_others_alone(start: int, channels: int, packed: bool) -> None:
    bits = torch.tensor([2, 4, 8], dtype=torch.int32)
    x, grid = features(3, channels, 4, 3, "channels_last"), act_grid(-2.0, 3.5)
    before = torch.randint(0, 4, (3, 4, 3, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    want = before.clone()
    end = start + (padded_channels(channels) if packed else channels)
    slice_ = want[..., start:end]
    ops.quantize_out(x, grid, bits, slice_, backend="reference")
    if packed:
        y_q = pack_codes(before, bits)
        with buffers([x, grid, bits], [y_q]):
            ops.quantize_out(x, grid, bits, y_q, packed_codes=True, start=start, backend="cuda")
        assert torch.equal(unpack_codes(y_q, bits), want)
    else:
        y_q = before.clone()
        with buffers([x, grid, bits], [y_q]):
            ops.quantize_out(x, grid, bits, y_q[..., start:end], backend="cuda")
        assert torch.equal(y_q, want)


# ---- image measure and bits


@pytest.mark.parametrize("height, width", [(1, 1), (7, 300), (33, 18)])
def test_the_measure_is_the_sum_of_the_same_float32_gradients(height: int, width: int) -> None:
    """Gradients are equal to those on the CPU, so only the order of a float64 sum differs: one rounding to float32 at most."""
    x = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(2)) * 255
    for order in ("ascending", "random"):
        with policy(order):
            got = ops.image_measure(x, backend="cuda")
            channels_last = ops.image_measure(x.contiguous(memory_format=torch.channels_last), backend="cuda")
        want = measure_images(x)
        assert torch.allclose(got, want, rtol=2**-23, atol=0)
        assert torch.equal(got, channels_last)
    assert torch.equal(ops.image_measure(torch.full((1, 3, 5, 5), 90.0), backend="cuda"), torch.zeros(1))


def test_bits_are_decided_on_the_device() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.stack([torch.rand(3, 20, 24, generator=g) * 255 * scale for scale in (0.0, 0.2, 0.5, 1.0)])
    measures = ops.image_measure(x, backend="cuda")
    rules = torch.tensor([[4, 1], [8, 0], [2, 1], [8, 1], [5, 0]], dtype=torch.int32)
    # Thresholds between the measures, and on one: neither below nor above.
    for lower, upper in ((measures[1], measures[2]), ((measures[0] + measures[1]) / 2, (measures[2] + measures[3]) / 2)):
        got = ops.layer_bits(x, lower, upper, rules, backend="cuda")
        assert torch.equal(got, bits_by_rule(rules, image_offsets(measures, lower, upper)))


# ---- through the operators


@pytest.mark.parametrize("problem", PROBLEMS[:4], ids=str)
def test_operators_equal_the_reference(problem: ConvProblem) -> None:
    instance = instantiate(problem)
    for out in ("acc", "both", "float", "codes"):
        want = instance.run("reference", out)
        for a, b in zip(instance.run("cuda", out), want, strict=True):
            assert torch.equal(a, b)


def test_one_image_of_a_batch_is_taken_wherever_it_begins() -> None:
    instance = instantiate(ConvProblem("second", 3, 5, 6, 9, bits=(4, 8), residual=True))
    assert instance.x_q[1:].data_ptr() % 16
    for name in ("x_q", "bits", "residual", "out_bits"):
        setattr(instance, name, getattr(instance, name)[1:])
    for a, b in zip(instance.run("cuda", "both"), instance.run("reference", "both"), strict=True):
        assert torch.equal(a, b)
    pixels = instance.layer.pixels(instance.x_q, instance.bits)
    instance.layer.set_backend("cuda", 1)
    assert torch.equal(instance.layer.pixels(instance.x_q, instance.bits), pixels)


def test_tensors_in_main_memory_are_refused() -> None:
    with pytest.raises(RuntimeError, match="cuda: the tensors must be on a CUDA device, got cpu"):
        real_place(torch.zeros(1))


# ---- networks

NETWORKS = {
    "edsr": (EDSRSpec(2, 2, 16), {}),
    "edsr_body": (EDSRSpec(4, 1, 12), {"quantize": "body", "weight_bits": 8, "act_bits": 6}),
    "edsr_staged": (EDSRSpec(3, 1, 16), {"tail": "staged", "recipe": "best"}),
    "rdn": (RDNSpec(2, 2, 2, 8, 12), {}),
    "rdn_body": (RDNSpec(2, 2, 3, growth=4, channels=8), {"quantize": "body"}),
    "rdn_odd": (RDNSpec(2, 2, 2, growth=6, channels=8), {}),  # its slices do not begin at multiples of 4
    "srresnet": (SRResNetSpec(2, 1, 8), {"act_bits": 4}),
    "rrdb": (RRDBSpec(4, 1, 8, 4), {}),
    "srvgg": (SRVGGSpec(3, 1, 8), {}),  # its last convolution is added to what lies behind its PixelShuffle
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_the_reference_on_a_mixed_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, settings = NETWORKS[name]
    torch.manual_seed(0)
    images = [torch.rand(1, 3, 16, 18) * 255 * scale for scale in (0.1, 0.5, 1.0)]
    model = adabm_kernels.convert_model(float_network(spec), images, ConvertConfig(batch=1, **{"recipe": "paper"} | settings))
    x = torch.cat([images[0], images[2]])
    model.set_backend("reference")
    want = model(x)
    monkeypatch.setattr(network, "choose", lambda problem, requested: Choice("cuda"))
    model.set_backend("cuda")
    assert {conv.backend for conv in model.convs()} == {"cuda"}
    assert model.quantizes_early == (name != "rdn_odd")
    for packed in (False, True):
        model.packed_codes = packed
        for conv in model.convs():
            conv.packed_codes = packed
        assert torch.equal(model(x), want)


@pytest.mark.parametrize("name", ["edsr", "rrdb"])
@pytest.mark.parametrize("packed", [False, True], ids=["bytes", "packed"])
def test_networks_with_easy_tiles_equal_the_reference(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, settings = NETWORKS[name]
    torch.manual_seed(0)
    images, x = [torch.rand(1, 3, 16, 18) * 255], pictures(14, 17)
    config = ConvertConfig(batch=1, depths="none", **settings)
    whole = adabm_kernels.convert_model(float_network(spec), images, config, check=False)
    model = with_exit(whole, an_exit(spec.scale, tile=4), "reference")
    assert 0.2 < model.computed_share(x).mean() < 0.9
    offset = torch.tensor([-1, 1], dtype=torch.int32)
    want = model(x, offset, origin=(3, 2))
    monkeypatch.setattr(network, "choose", lambda problem, requested: Choice("cuda"))
    model.set_backend("cuda")
    model.packed_codes = packed
    for conv in model.convs():
        conv.packed_codes = packed
    poison_empty(monkeypatch)
    assert torch.equal(model(x, offset, origin=(3, 2)), want)


@pytest.mark.parametrize("early", [False, True], ids=["layer_by_layer", "early"])
def test_bytes_of_a_dense_block(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels of RDN's blocks read and write, weights aside (docs/notes_hopper.md): RDN-B's layers with fewer channels."""
    c, layers, blocks = 8, 8, 3
    torch.manual_seed(0)
    images = [torch.rand(1, 3, 16, 16) * 255]
    spec = RDNSpec(2, blocks, layers, c, c)
    model = adabm_kernels.convert_model(float_network(spec), images, ConvertConfig(batch=1, recipe="paper"))
    monkeypatch.setattr(network, "choose", lambda problem, requested: Choice("cuda"))
    monkeypatch.setattr(type(model), "quantizes_early", early)
    model.set_backend("cuda")
    model.packed_codes = False
    for conv in model.convs():
        conv.packed_codes = False
    counted, counting = [0], [False]

    def count(*tensors: torch.Tensor | None) -> None:
        counted[0] += counting[0] * sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def ready_conv2d_out(conv: Conv, to: Outputs) -> RunConv2d:
        return lambda *tensors: count(tensors[0], tensors[7], *tensors[11:])

    def ready_quantize_out(read: Quantization, y_q: torch.Tensor) -> RunQuantize:
        return lambda *tensors: count(tensors[0], tensors[5])

    def quantize_many_out(x: torch.Tensor, targets: list[Target], packed_codes: bool) -> None:
        count(x, *(target.y_q for target in targets))

    def begin(*args, **outputs) -> None:
        before(*args, **outputs)
        counting[0] = True

    def end(*args, **outputs) -> None:
        counting[0] = False
        behind(*args, **outputs)

    before, behind = model.conv("SFENet2").into, model.conv("GFF.1").into
    monkeypatch.setattr(model.conv("SFENet2"), "into", begin)
    monkeypatch.setattr(model.conv("GFF.1"), "into", end)
    for stand_in in (ready_conv2d_out, ready_quantize_out, quantize_many_out):
        monkeypatch.setattr(cuda, stand_in.__name__, stand_in)
    model(images[0])
    groups = layers + 1  # of c channels, the block's input and each layer's
    read_by_convolutions = sum(range(1, groups + 1))
    floats, entry, gather = 4 * layers, 4 + 4 + 1, 4 + 1  # written; residual, float and codes of the fusion; codes for the end
    quantised = 4 * groups + (groups - 1) * groups // 2 + groups - 1 if early else 5 * (read_by_convolutions - 1)
    block = read_by_convolutions + floats + entry + gather + quantised
    assert block == (171 if early else 311)
    # The last block has no next one to make codes for; the fusion at the end reads the codes of all and writes those of one. What
    # is read for the next block's layers is read for that fusion, too.
    shared = 4 * (blocks - 1) if early else 0
    assert counted[0] == 16 * 16 * c * (block * blocks - 1 + blocks + 1 - shared)
