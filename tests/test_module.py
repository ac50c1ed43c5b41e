"""A converted network as a torch.nn.Module: copies, dtypes, layouts, autograd, threads, forks, compile and export."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from small import one_thread, small_edsr  # noqa: F401
from torch import nn

import adabm_kernels
from adabm_kernels import native
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.nn import ConvertedNetwork

BACKENDS = ["reference"] if native.why_missing("cpu") else ["cpu", "reference"]
SIDE = 12


def images(count: int = 2, height: int = SIDE, width: int = SIDE + 3) -> torch.Tensor:
    """float32 [count, 3, height, width] in 0..255: noise below smooth rows, which differ in bits."""
    g = torch.Generator().manual_seed(5)
    x = torch.rand(count, 3, height, width, generator=g) * 255
    x[1::2] = torch.linspace(0, 255, width)
    return x


@functools.cache
def fresh(backend: str) -> ConvertedNetwork:
    config = ConvertConfig(batch=2)
    model = convert_model(small_edsr(), [images(4, 20, 20)], config)
    model.set_backend(backend)
    model.set_threads(1)
    return model


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest) -> ConvertedNetwork:
    return copy.deepcopy(fresh(request.param))


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch_save": through_torch_save,
    "float": lambda model: model.float(),
    "to_cpu": lambda model: model.to("cpu"),
    "to_channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "train": lambda model: model.train(),
    "requires_grad": lambda model: model.requires_grad_(),
    "share_memory": lambda model: model.share_memory(),
    "data_parallel": nn.DataParallel,
    "sequential": nn.Sequential,
}


@pytest.mark.parametrize("name", COPIES)
def test_what_is_done_to_a_module_leaves_its_results(model: ConvertedNetwork, name: str) -> None:
    model.set_bits(5)  # a setting that copies must keep
    want = model(images())
    assert torch.equal(COPIES[name](model)(images()), want)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "slice": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "reversed_batch": lambda x: x.flip(0)[torch.arange(len(x)).flip(0)],
    "requires_grad": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_of_the_input_does_not_matter(model: ConvertedNetwork, name: str) -> None:
    want = model(images())
    got = model(LAYOUTS[name](images()))
    assert torch.equal(got, want) and not got.requires_grad


def test_an_expanded_input(model: ConvertedNetwork) -> None:
    grey = images(1)[:, :1].expand(2, 3, -1, -1)
    assert torch.equal(model(grey), model(grey.contiguous()))


def test_a_batch_is_its_images_one_by_one(model: ConvertedNetwork) -> None:
    x = images(5)
    assert torch.equal(model(x), torch.cat([model(image) for image in x.split(1)]))


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_of_torch_change_nothing(model: ConvertedNetwork, name: str) -> None:
    want = model(images())
    with CONTEXTS[name]():
        inside = model(images())
    assert inside.dtype == torch.float32 and torch.equal(inside, want)
    assert torch.equal(model(images()), want)  # nor afterwards: buffers made inside serve outside


def test_nothing_is_recorded_for_autograd_and_nothing_can_be_trained(model: ConvertedNetwork) -> None:
    assert list(model.parameters()) == []
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(images().requires_grad_()).sum().backward()


def test_threads_share_a_model(model: ConvertedNetwork) -> None:
    inputs = [images(2, SIDE + i, SIDE) for i in range(3)]
    want, wrong = [model(x) for x in inputs], []

    def work(i: int) -> None:
        for turn in range(6):
            which = (i + turn) % len(inputs)  # other shapes than the threads beside, at every turn
            if not torch.equal(model(inputs[which]), want[which]):
                wrong.append((i, turn))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Upscaled(torch.utils.data.Dataset):
    """Pictures upscaled where they are loaded."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.model(images(4)[i : i + 1])[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_use_the_model_of_their_parent(model: ConvertedNetwork, start: str) -> None:
    if start == "spawn" and model.choice.backend == "reference":
        pytest.skip("seconds of imports, and pickled alike")
    model.set_threads(2)
    want = model(images(4))  # the parent's pool of threads is running when the workers begin
    loader = torch.utils.data.DataLoader(Upscaled(model), batch_size=2, num_workers=2, multiprocessing_context=start, timeout=120)
    assert torch.equal(torch.cat(list(loader)), want)


def half_flat(count: int, height: int, width: int) -> torch.Tensor:
    """`images` with easy tiles, where they have several."""
    x = images(count, height, width)
    x[..., width // 2 :] = 100
    return x


SIZES = {"one_tile": (1, SIDE, SIDE + 3), "a_batch": (2, SIDE, SIDE), "many_tiles": (1, 20, 50)}


@pytest.mark.parametrize("traced", SIZES)
@pytest.mark.parametrize("depth", ["auto", 0])
def test_compiled_and_exported_it_computes_the_same(model: ConvertedNetwork, depth: str | int, traced: str) -> None:
    """Traced with few or many tiles, the program is right for images of any number of them."""
    model.set_depth(depth)
    x = half_flat(*SIZES[traced])
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in ((0, 2, 3) if len(x) > 1 else (2, 3))}
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": sizes}).module()
    several = half_flat(len(x), 33, 40)
    assert depth == 0 or 0 < model.computed_share(several).min() < 1
    for given in (x, several, half_flat(len(x), SIDE - 1, 17), half_flat(3 if len(x) > 1 else 1, 50, 8)):
        assert torch.equal(exported(given), model(given))


def test_its_text_says_what_it_is(model: ConvertedNetwork) -> None:
    lines = repr(model).splitlines()
    assert lines[0] == "ConvertedEDSR(" and lines[1].strip().startswith(f"edsr x2, W4A4 adaptive, {model.choice.backend}")
    low, high = model.conv("body.0.conv1").bit_range
    assert f"(body_0_conv1): AdaptiveConv2d(8 -> 8, 3x3, {low}..{high}-bit codes, relu)" in repr(model)
    assert "(head_0): AdaptiveConv2d(3 -> 8, 3x3, 8-bit codes)" in repr(model)
    model.set_bits(3)
    assert "W4A4 adaptive at 3 bits throughout" in repr(model)


def test_conversion_tells_its_progress() -> None:
    calls = []
    model = convert_model(small_edsr(), [images(4, 20, 20)], ConvertConfig(batch=2), progress=lambda *call: calls.append(call))
    assert calls and all(0 <= done <= total and what for done, total, what in calls)
    assert calls[-1][0] == calls[-1][1]
    assert torch.equal(model(images()), fresh(BACKENDS[0])(images()))  # watching changes nothing


def test_completion_in_an_interpreter_shows_what_there_is_to_use() -> None:
    assert set(adabm_kernels.__all__) <= set(dir(adabm_kernels))
    assert [name for name in dir(adabm_kernels) if not hasattr(adabm_kernels, name)] == []
    assert not {"importlib", "Any", "TYPE_CHECKING"} & set(dir(adabm_kernels))
