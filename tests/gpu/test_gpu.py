"""The GPU backends on a card, where there is one: the same problems as on the host runtime, streams, graphs and devices."""

from __future__ import annotations

import pytest
import torch
from problems import PROBLEMS, ConvInstance, ConvProblem, instantiate
from small import poison_empty

import adabm_kernels
from adabm_kernels import ConvertConfig, native, ops
from adabm_kernels.backends import cuda
from adabm_kernels.backends.call import Conv, Outputs
from adabm_kernels.backends.structs import conv2d_args
from adabm_kernels.image_bits import measure_images
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.quantize import act_grid, pack_codes, to_pixels, unpack_codes
from adabm_kernels.regions import Depths, Region
from adabm_kernels.registry import GPU_BACKENDS, Problem, choose

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


def needs(backend: str) -> None:
    try:
        choose(Problem("cuda"), backend)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(params=GPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return request.param


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs begin as garbage: what a kernel leaves out would show."""
    poison_empty(monkeypatch)


def on_card(instance: ConvInstance, backend: str, device: str = "cuda") -> ConvInstance:
    """The same problem with its tensors on a card."""
    moved = {name: None if t is None else t.to(device) for name, t in vars(instance).items() if name != "layer"}
    layer = instance.layer.to(device)
    layer.packed = torch.empty(0, dtype=torch.uint8, device=device)
    layer.set_backend(backend, 0)
    return ConvInstance(layer, **moved)


def run(instance: ConvInstance, out: str) -> list[torch.Tensor]:
    residual = None if out == "acc" else instance.residual
    outputs = {"out": out, "out_grid": instance.out_grid, "out_bits": instance.out_bits}
    return [t.cpu() for t in instance.layer(instance.x_q, instance.bits, residual=residual, **outputs)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernels_equal_the_reference(problem: ConvProblem, backend: str) -> None:
    instance = instantiate(problem)
    want = {out: instance.run("reference", out) for out in ("acc", "both")}
    card = on_card(instance, backend)
    for out, wanted in want.items():
        for got, expected in zip(run(card, out), wanted, strict=True):
            assert torch.equal(got, expected)
    card.layer.packed_codes = True
    card.x_q = pack_codes(card.x_q, card.bits)
    y, y_q = run(card, "both")
    assert torch.equal(y, want["both"][0])
    assert torch.equal(unpack_codes(y_q, card.out_bits.cpu()), want["both"][1])


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="no card of compute capability 9.0"
)
@pytest.mark.parametrize("height, width", [(17, 33), (64, 96), (200, 130)])
def test_residual_blocks_equal_two_convolutions(height: int, width: int) -> None:
    settings = {"bits": (4, 8, 2), "out_bits": (3, 6, 8), "activation": "relu"}
    first = instantiate(ConvProblem("block", height, width, 64, 64, **settings))
    second = instantiate(ConvProblem("block", height, width, 64, 64, bits=(3, 6, 8), residual=True), seed=1)
    _, second.x_q = first.run("reference", "codes")
    want_y, want_q = second.run("reference", "both")
    a, b = on_card(first, "cuda"), on_card(second, "cuda")
    assert a.layer.why_not_with(b.layer) == ""
    for packed in (False, True):
        a.layer.packed_codes = packed
        x_q = pack_codes(a.x_q, a.bits) if packed else a.x_q
        y, y_q = torch.full_like(b.residual, -7.0), torch.full_like(x_q, 171)
        outputs = {"y": y, "y_q": y_q, "residual": b.residual, "out_grid": b.out_grid, "out_bits": b.out_bits}
        # The grid of the codes in the middle is that of the problem, not of the second layer.
        b.layer.grid = a.out_grid
        a.layer.into_with(b.layer, x_q, a.bits, a.out_bits, **outputs)
        assert torch.equal(y.cpu(), want_y)
        got = y_q.cpu()
        assert torch.equal(unpack_codes(got, second.out_bits) if packed else got, want_q)


CONFIGURED = {  # kernel: channels, outputs
    "resident": (64, 64),
    "staged": (128, 64),
}


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="no card of compute capability 9.0"
)
@pytest.mark.parametrize("kernel", [*CONFIGURED, "resblock"])
def test_every_configuration_equals_the_reference(kernel: str) -> None:
    channels, outputs = CONFIGURED.get(kernel, (64, 64))
    settings = {"bits": (8, 3, 5), "activation": "relu"}
    first = on_card(instantiate(ConvProblem("first", 50, 131, channels, outputs, **settings)), "cuda")
    second = on_card(instantiate(ConvProblem("second", 50, 131, 64, 64, bits=(4, 4, 4), residual=True), seed=1), "cuda")
    inner = torch.empty(3, 50, 131, 64, dtype=torch.uint8, device="cuda")
    codes = {"out_grid": first.out_grid, "out_bits": first.out_bits}
    first.layer.into(first.x_q, first.bits, y_q=inner, **codes)
    want = second.layer(inner, first.out_bits, residual=second.residual)[0] if kernel == "resblock" else inner.clone()
    for config in range(1, len(native.kernel_configs(kernel)) + 1):
        got = torch.full_like(want, 77)
        tables = [(i.layer.weight, i.layer.packed, i.layer.alpha, i.layer.beta, None) for i in (first, second)]
        end = (first.out_grid, first.out_bits, first.layer.box_filter, "relu", 1)
        conv = Conv(first.x_q, first.bits, *tables[0], None, *end)
        a, _ = conv2d_args(conv, Outputs(y_q=None if kernel == "resblock" else got), config=config)
        place = cuda._place(got)
        if kernel == "resblock":
            outputs_of = (second.residual, None, None, second.layer.box_filter, "none", 1)
            b, _ = conv2d_args(Conv(inner, first.out_bits, *tables[1], *outputs_of), Outputs(got))
            b.x_q, b.x_bits = None, a.out_bits
            native.library("cuda").call("adabm_resblock_cuda", a, b, *place)
        else:
            native.library("cuda").call("adabm_conv2d_cuda", a, *place)
        assert torch.equal(got, want)


def test_quantising_on_many_grids_equals_the_reference(backend: str) -> None:
    x = torch.randn(3, 20, 30, 17, generator=torch.Generator().manual_seed(0))
    grids = [act_grid(-1.0 - i, 2.0) for i in range(5)]
    bits = [torch.tensor([2 + i, 8 - i, 5], dtype=torch.int32) for i in range(5)]
    got = [torch.zeros(3, 30, 17, 20, dtype=torch.uint8, device="cuda") for _ in range(5)]
    ops.quantize_many_out(x.cuda(), [g.cuda() for g in grids], [b.cuda() for b in bits], got, backend=backend)
    for grid, own_bits, y_q in zip(grids, bits, got, strict=True):
        assert torch.equal(y_q.cpu(), ops.quantize(x, grid, own_bits, backend="reference"))


@pytest.mark.usefixtures("poisoned")
def test_quantisation_equals_the_reference(backend: str) -> None:
    g = torch.Generator().manual_seed(0)
    bits = torch.arange(2, 9, dtype=torch.int32)
    x, grid = torch.randn(7, 21, 30, 17, generator=g), act_grid(-2.0, 3.0)
    want = ops.quantize(x, grid, bits, backend="reference")
    for packed in (False, True):
        got = ops.quantize(x.cuda(), grid.cuda(), bits.cuda(), packed_codes=packed, backend=backend).cpu()
        assert torch.equal(unpack_codes(got, bits) if packed else got, want)


def test_the_measure_is_that_of_the_cpu(backend: str) -> None:
    """The CUDA library takes the same float32 gradients and sums in float64: one rounding to float32 at most."""
    if backend != "cuda":
        pytest.skip("the order of operations of this backend is its own")
    images = torch.rand(3, 3, 65, 130, generator=torch.Generator().manual_seed(0)) * 255
    assert torch.allclose(ops.image_measure(images.cuda(), backend=backend).cpu(), measure_images(images), rtol=2**-23, atol=0)


def test_work_goes_to_the_current_stream(backend: str) -> None:
    """Behind a long operation on the same stream: on any other, the kernel would read the input before it is there."""
    instance = instantiate(ConvProblem("stream", 64, 64, 64, 64, bits=(4, 8), residual=True))
    want = instance.run("reference", "float")[0]
    card = on_card(instance, backend)
    run(card, "float")  # loads the kernels
    late = torch.empty_like(card.x_q)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(card.x_q)
        y, _ = card.layer(late, card.bits, residual=card.residual, out="float")
    stream.synchronize()
    assert torch.equal(y.cpu(), want)


def small_network() -> tuple[torch.nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    """A converted network, images that get fewer, the usual and more bits, and what the CPU makes of them."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images = [torch.rand(1, 3, 24, 28, generator=g) * 255 * scale for scale in (0.1, 0.5, 1.0)]
    model = adabm_kernels.convert_model(float_network(EDSRSpec(2, 2, 16)), images, ConvertConfig(batch=1, recipe="paper"))
    return model, images, [model(x) for x in images]


@pytest.mark.parametrize("asked", [*GPU_BACKENDS, "auto"])
def test_a_network_is_captured_in_a_graph_with_its_bits_as_data(asked: str) -> None:
    """ "auto": each convolution on the backend that its shape chooses."""
    needs(asked)
    model, images, wants = small_network()
    model.cuda()
    model.set_backend(asked, graph=True)
    for _ in range(2):  # recorded, then replayed on images with other bits
        for x, want in zip(images, wants, strict=True):
            assert torch.equal(model(x.cuda()).cpu(), want)
            assert torch.equal(model.pixels(x.cuda()).cpu(), to_pixels(want))


@pytest.mark.parametrize("channels", [64, 96], ids=str)
def test_a_graph_computes_the_region_of_the_depths_that_are_there(channels: int, backend: str) -> None:
    """What a map of depths holds is data: one recording serves every map."""
    card = on_card(instantiate(ConvProblem("region", 37, 70, channels, 64, bits=(4, 8), residual=True)), backend)
    run(card, "float")  # loads the kernels and packs the weights
    layer, depth = card.layer, torch.zeros(2, 5, 10, dtype=torch.uint8, device="cuda")
    region = Region(own=(1, 255), passed=(2, 255), pass_reach=2).numbers(Depths(depth, 8, 3, 5))
    y, y_q = torch.empty_like(card.residual), torch.empty(2, 37, 70, 64, dtype=torch.uint8, device="cuda")

    def compute(backend: str) -> None:
        tables = (layer.weight, layer.packed, layer.alpha, layer.beta)
        codes = {"out_grid": card.out_grid, "out_bits": card.out_bits, "box_filter": layer.box_filter, "residual": card.residual}
        ops.conv2d_out(card.x_q, card.bits, *tables, y=y, y_q=y_q, backend=backend, depth=depth, region=region, **codes)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute(backend)
    for most in (1, 2, 4):  # depths 0, and 0..1, and 0..3
        depth.random_(0, most)
        results = []
        for run_it in (graph.replay, lambda: compute("reference")):
            y.fill_(-7.0), y_q.fill_(171)
            run_it()
            results.append((y.cpu(), y_q.cpu()))
        assert all(torch.equal(got, want) for got, want in zip(*results, strict=True))


def test_a_graph_finds_the_depths_of_the_pixels_that_are_there(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256 // weaker, (2, 70, 90, 4), dtype=torch.uint8, generator=generator) for weaker in (1, 16)]
    place = {"tile": 24, "threshold": 55, "deep": 16, "top": 3, "left": 7}
    x_q = pictures[0].cuda()
    ops.tile_depths(x_q, **place, backend=backend)  # Triton compiles at its first launch
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        depth = ops.tile_depths(x_q, **place, backend=backend)
    for picture in pictures:
        x_q.copy_(picture)
        graph.replay()
        if torch.cuda.get_device_name(0) == "pretended card":  # which records nothing
            depth = ops.tile_depths(x_q, **place, backend=backend)
        assert torch.equal(depth.cpu(), ops.tile_depths(picture, **place, backend="reference"))


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "graphs"])
def test_several_images_in_flight(backend: str, recorded: bool) -> None:
    """More images than lanes, of two shapes and with other bits; the caller on a stream of its own."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images = [torch.rand(1, 3, 24 + 8 * (i % 2), 28, generator=g) * 255 * (0.1, 0.5, 1.0)[i % 3] for i in range(9)]
    model = adabm_kernels.convert_model(float_network(EDSRSpec(2, 2, 16)), images[::2])
    wants = [model(x) for x in images]
    model.cuda()
    model.set_backend(backend, graph=recorded)
    with torch.cuda.stream(torch.cuda.Stream()):
        for in_flight in (1, 3):
            got = [y.cpu() for y in model.forward_many((x.cuda() for x in images), in_flight)]
            assert all(torch.equal(y, want) for y, want in zip(got, wants, strict=True))
            got = [y.cpu() for y in model.forward_many([x.cuda() for x in images], in_flight, pixels=True)]
            assert all(torch.equal(y, to_pixels(want)) for y, want in zip(got, wants, strict=True))
    arrays = [x[0].permute(1, 2, 0).round().to(torch.uint8).numpy() for x in images]
    one_by_one = list(adabm_kernels.upscale_many(arrays, model, in_flight=1))
    for a, b in zip(adabm_kernels.upscale_many(arrays, model, in_flight=3), one_by_one, strict=True):
        assert (a == b).all()


def test_a_network_compiles_into_one_graph(backend: str) -> None:
    model, images, wants = small_network()
    model.cuda()
    model.set_backend(backend)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for x, want in zip(images, wants, strict=True):
        assert torch.equal(compiled(x.cuda()).cpu(), want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_device_that_is_not_the_current_one(backend: str) -> None:
    instance = instantiate(PROBLEMS[0])
    want = instance.run("reference", "both")
    card = on_card(instance, backend, "cuda:1")
    assert torch.cuda.current_device() == 0
    for got, expected in zip(run(card, "both"), want, strict=True):
        assert torch.equal(got, expected)
    assert torch.cuda.current_device() == 0
    with pytest.raises(RuntimeError, match="x_bits must be on the device of x_q, cuda:1, got cuda:0"):
        card.layer(card.x_q, card.bits.to("cuda:0"), out="acc")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_graphs_on_two_devices(backend: str) -> None:
    """A recording on the second finds something to record after one on the first."""
    model, images, wants = small_network()
    for device in ("cuda:0", "cuda:1"):
        model.to(device)
        model.set_backend(backend, graph=True)
        for x, want in zip(images, wants, strict=True):
            assert torch.equal(model(x.to(device)).cpu(), want)
