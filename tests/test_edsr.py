"""The float EDSR: published weights reach their published quality, and the architecture is what its keys say."""

import numpy as np
import pytest
import torch
from PIL import Image
from shared import shared_path

from adabm_kernels.metrics import psnr_y
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import detect, to_float_state
from adabm_kernels.networks.edsr import DIV2K_PIXELS, EDSR, EDSRSpec

SET5 = ("baby", "bird", "butterfly", "head", "woman")


def set5_pair(name, scale):
    """Low-resolution float [1, 3, h, w] in 0..255 and uint8 [H, W, 3] of the size the network makes of it."""
    lr = np.array(Image.open(shared_path("data", "images", "set5", f"LR_x{scale}", f"{name}.png")).convert("RGB"))
    hr = np.array(Image.open(shared_path("data", "images", "set5", "HR", f"{name}.png")).convert("RGB"))
    x = torch.from_numpy(lr).permute(2, 0, 1)[None].float()
    return x, hr[: lr.shape[0] * scale, : lr.shape[1] * scale]


def picture(y):
    return y[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("name", "published"),
    [("edsr_baseline_x4", 32.04), ("edsr_baseline_x2", 37.36), ("edsr_r8f64_x2", 37.80), ("mlperf_edsr_f32b5_x2", 37.38)],
)
def test_published_psnr_on_set5(name, published):
    state = load_state(shared_path("data", "weights", f"{name}.pt"))
    found = detect(state)
    model = EDSR(found.spec).eval()
    model.load_state_dict(to_float_state(state, found))
    scores = []
    with torch.no_grad():
        for image in SET5:
            x, hr = set5_pair(image, found.spec.scale)
            scores.append(psnr_y(picture(model(x)), hr, found.spec.scale))
    assert np.mean(scores) == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("tail", ["staged", "single"])
@pytest.mark.parametrize("mean_shift", [True, False])
def test_output_size(scale, tail, mean_shift):
    model = EDSR(EDSRSpec(scale, 2, 4, mean_shift, tail))
    assert model(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


def test_mean_shift_is_undone_at_the_end():
    model = EDSR(EDSRSpec(2, 1, 4))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    mean = torch.tensor(DIV2K_PIXELS).view(1, 3, 1, 1)
    assert torch.equal(model(torch.rand(1, 3, 4, 4)), mean.expand(1, 3, 8, 8))


def test_residual_scale():
    torch.manual_seed(0)
    full = EDSR(EDSRSpec(2, 1, 4, res_scale=1.0))
    tenth = EDSR(EDSRSpec(2, 1, 4, res_scale=0.1))
    tenth.load_state_dict(full.state_dict())
    seen = []
    for model in (full, tenth):
        model.head[0].register_forward_hook(lambda _, args, x: seen.append(x))
        model.body[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(torch.ones(1, 3, 6, 6))
    x, after, _, after_tenth = seen
    assert torch.allclose(after_tenth - x, 0.1 * (after - x), atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 8}, "scale must be 2, 3 or 4, got 8"),
        ({"blocks": 0}, "blocks must be an integer from 1 to 1000, got 0"),
        ({"channels": -1}, "channels must be an integer from 1 to 65536, got -1"),
        ({"tail": "deconv"}, "tail must be 'staged' or 'single', got 'deconv'"),
    ],
)
def test_specs_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=f"EDSRSpec: {message}"):
        EDSRSpec(**{"scale": 2, "blocks": 1, "channels": 4} | values)
