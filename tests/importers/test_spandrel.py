"""Networks that the package spandrel knows: its descriptors, the layouts that it alone recognises, and its absence."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from needs import needs
from small import images, one_thread, small_edsr  # noqa: F401
from torch import nn
from traced_modules import Compact

from adabm_kernels import ConvertConfig, convert_model, read_network
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.network import ConvertedGraph

CONFIG = ConvertConfig(4, 4, recipe="paper", batch=1)


class Other(nn.Module):
    """A network that is none of the known ones."""

    def __init__(self) -> None:
        super().__init__()
        self.only_spandrel = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.pixel_shuffle(self.only_spandrel(x), 2)


class Unsupported(Exception):
    pass


class Descriptor:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.architecture = model, SimpleNamespace(name=type(model).__name__)


class Loader:
    """It knows `Other`, and an EDSR whose keys begin with "odd_"."""

    def __init__(self, device: str) -> None:
        assert device == "cpu"

    def load_from_state_dict(self, state: Mapping[str, torch.Tensor]) -> Descriptor:
        if "odd_head.0.weight" in state:
            network = small_edsr()
            network.load_state_dict({key.removeprefix("odd_"): value for key, value in state.items()})
            return Descriptor(network)
        if "only_spandrel.weight" not in state:
            raise Unsupported("no such architecture")
        network = Other()
        network.load_state_dict(state)
        return Descriptor(network)


@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with what is used of spandrel."""
    package = ModuleType("spandrel")
    package.__dict__.update(
        ModelLoader=Loader,
        ImageModelDescriptor=Descriptor,
        MaskedImageModelDescriptor=Descriptor,
        canonicalize_state_dict=lambda state: state,
    )
    monkeypatch.setitem(sys.modules, "spandrel", package)


def saved(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    torch.save(dict(state), folder / "weights.pth")
    return folder / "weights.pth"


def test_a_descriptor_stands_for_its_network(spandrel: None) -> None:
    torch.manual_seed(0)
    model = convert_model(Descriptor(Other().train()), [torch.rand(1, 3, 16, 16)], CONFIG)  # type: ignore[arg-type]
    assert isinstance(model, ConvertedGraph) and model(torch.rand(1, 3, 9, 8)).shape == (1, 3, 18, 16)
    known = convert_model(Descriptor(small_edsr()), [images(1, 3, 16, 16)], CONFIG, check=False)  # type: ignore[arg-type]
    assert type(known) is not ConvertedGraph and known.spec.network == "edsr"


def test_a_file_that_only_spandrel_knows(spandrel: None, tmp_path: Path, adabm: Any) -> None:
    torch.manual_seed(0)
    other, x = Other(), images(1, 3, 9, 8)
    path = saved(other.state_dict(), tmp_path)
    network = read_network(path)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x / 255) * 255, rtol=0, atol=1e-3)
    assert isinstance(convert_model(network, [images(1, 3, 16, 16)], CONFIG), ConvertedNetwork)
    with pytest.raises(ValueError, match="^detect: not an EDSR, "):  # settings are those of a known network
        read_network(path, res_scale=0.1)
    status, _, err = calibrated(adabm, path, tmp_path)
    assert status == 2 and "spandrel knows it as Other, which is none of the networks that this command takes" in err


def test_a_known_network_in_a_layout_that_only_spandrel_knows(spandrel: None, tmp_path: Path, adabm: Any) -> None:
    edsr, x = small_edsr(), images(1, 3, 9, 8)
    path = saved({f"odd_{key}": value for key, value in edsr.state_dict().items()}, tmp_path)
    with torch.no_grad():
        assert torch.equal(read_network(path)(x), edsr(x))
    status, out, err = calibrated(adabm, path, tmp_path, "--recipe", "paper", "--no-check", "--steps", "0")
    assert status == 0 and "edsr x2" in out, err


def test_what_spandrel_does_not_know_either(spandrel: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^detect: not an EDSR, ") as error:
        read_network(saved({"strange.weight": torch.zeros(4, 3, 3, 3)}, tmp_path))
    assert "spandrel" not in str(error.value)


def test_without_spandrel_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adabm: Any) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    path = saved(Other().state_dict(), tmp_path)
    words = "the package spandrel, which knows more layouts, is not installed: pip install spandrel"
    with pytest.raises(ValueError, match=f"^detect: not an EDSR, .*; {words}$"):
        read_network(path)
    status, _, err = calibrated(adabm, path, tmp_path)
    assert status == 2 and words in err and len(err.splitlines()) == 1


def calibrated(adabm: Any, weights: Path, folder: Path, *options: str) -> tuple[int, str, str]:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    from PIL import Image

    Image.new("RGB", (64, 64), (9, 99, 199)).save(pictures / "one.png")
    return adabm("calibrate", "--weights", weights, "--images", pictures, "-o", folder / "m.safetensors", *options)


@needs("spandrel")
def test_spandrel_itself(tmp_path: Path) -> None:
    """A known network from its descriptor, and a network that it alone knows from a file."""
    import spandrel

    compact = Compact().state_dict()
    descriptor = spandrel.ModelLoader("cpu").load_from_state_dict(compact)
    assert convert_model(descriptor, [images(1, 3, 16, 16)], CONFIG, check=False).spec.network == "srvgg"
    from spandrel.architectures.MoSR import MoSR  # a network with depthwise convolutions and gates

    torch.manual_seed(0)
    network, x = MoSR(n_block=1, dim=16, upscale=2), images(1, 3, 16, 20)
    read = read_network(saved(network.state_dict(), tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(read(x), network.eval()(x / 255) * 255, rtol=0, atol=1e-3)
    model = convert_model(read, [x], ConvertConfig(8, 8, recipe="paper", batch=1, adaptive=False))
    assert model(x).shape == (1, 3, 32, 40)
