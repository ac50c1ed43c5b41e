"""Picture quality as the super-resolution literature measures it: PSNR and SSIM on luma, with the border shaved."""

from __future__ import annotations

from typing import Any

import numpy as np

LUMA = np.array([65.738, 129.057, 25.064]) / 256  # ITU-R BT.601 studio range, as MATLAB's rgb2ycbcr
LUMA_OFFSET = 16.0


def rgb_to_y(rgb: np.ndarray) -> np.ndarray:
    """The luma of [..., 3] in 0..255, as float64 [...] in 16..235 that is not rounded."""
    return np.asarray(rgb, np.float64) @ LUMA + LUMA_OFFSET


def psnr(a: Any, b: Any, peak: float = 255.0) -> float:
    """10 log10(peak^2 / mean((a - b)^2)) in dB over all elements; infinite when equal.

    a, b: arrays or CPU tensors of one shape. Raises ValueError when the shapes differ or hold nothing.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"psnr: a and b must have one shape and not be empty, got {a.shape} and {b.shape}")
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def psnr_y(sr: np.ndarray, hr: np.ndarray, shave: int) -> float:
    """The PSNR of luma in dB with a peak of 255, without `shave` pixels on each side (EDSR and AdaBM shave `scale`).

    sr, hr: uint8 [H, W, 3]. Raises TypeError for another type, and ValueError for other or different shapes and where no pixels are
    left.
    """
    a, b = _shaved_luma("psnr_y", sr, hr, shave, 1)
    return psnr(a, b)


def ssim_y(sr: np.ndarray, hr: np.ndarray, shave: int) -> float:
    """The mean SSIM of luma in -1..1, without `shave` pixels on each side (Wang et al., IEEE TIP 2004).

    The Gaussian window is 11x11 with sigma 1.5, and is used only where it fits inside the picture; K1 = 0.01, K2 = 0.03, peak 255.
    sr, hr: uint8 [H, W, 3]. Raises TypeError for another type, and ValueError for other or different shapes and where fewer than 11
    pixels a side are left.
    """
    a, b = _shaved_luma("ssim_y", sr, hr, shave, 11)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b, cov = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2, _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return float(np.mean(luminance * structure))


def _blur(plane: np.ndarray) -> np.ndarray:
    gauss = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    gauss /= gauss.sum()
    for axis in (0, 1):
        plane = np.lib.stride_tricks.sliding_window_view(plane, 11, axis) @ gauss
    return plane


def _shaved_luma(name: str, sr: np.ndarray, hr: np.ndarray, shave: int, least: int) -> list[np.ndarray]:
    for key, image in (("sr", sr), ("hr", hr)):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            seen = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"{name}: {key} must be a uint8 array, got {seen}")
    if sr.shape != hr.shape or sr.ndim != 3 or sr.shape[2] != 3:
        raise ValueError(f"{name}: sr and hr must be [H, W, 3] of one size, got {sr.shape} and {hr.shape}")
    if isinstance(shave, bool) or not isinstance(shave, int) or shave < 0:
        raise ValueError(f"{name}: shave must be a whole number of pixels, at least 0, got {shave!r}")
    h, w = sr.shape[:2]
    if min(h, w) - 2 * shave < least:
        raise ValueError(f"{name}: {least} pixels a side must be left after shaving {shave}, got a {h}x{w} picture")
    return [rgb_to_y(image[shave : h - shave, shave : w - shave]) for image in (sr, hr)]
