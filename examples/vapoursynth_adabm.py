"""A filter for VapourSynth that upscales clips by a converted model, and a script that uses it.

    vspipe -c y4m -a source="$PWD/in.mkv" vapoursynth_adabm.py - |
      ffmpeg -i - -i in.mkv -map 0:v -map 1:a? -c:a copy -colorspace bt709 -color_primaries bt709 -color_trc bt709 out.mkv

In scripts of your own: `from vapoursynth_adabm import upscale`, with this file beside them. docs/vapoursynth.md tells more.
"""

from __future__ import annotations

import os

import numpy as np
import torch
import vapoursynth as vs

import adabm_kernels


def upscale(
    clip: vs.VideoNode,
    model: str | os.PathLike | torch.nn.Module = "edsr_x4_w4a4",
    *,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    **settings,
) -> vs.VideoNode:
    """The clip in the model's size, in `scale` times its own, or in width x height pixels.

    clip: RGB24 or RGB48, of one size. The result has the same format, frame rate and properties of frames.
    settings: bits, depth, device, threads, tile, smooth and the other settings of `adabm_kernels.upscale`.
    """
    if clip.format is None or clip.format.id not in (vs.RGB24, vs.RGB48) or not clip.width:
        found = clip.format.name if clip.format is not None else "formats that vary"
        raise ValueError(f"clip must be RGB24 or RGB48 of one size, got {found}: clip.resize.Bicubic(format=vs.RGB24) converts it")
    if (width is None) != (height is None) or (scale is not None and width is not None):
        raise ValueError(f"width and height must be given together, without scale, got {width}, {height} and {scale}")
    network = model if isinstance(model, torch.nn.Module) else adabm_kernels.load(model)
    factor = network.scale if scale is None else scale
    size = (round(factor * clip.width), round(factor * clip.height)) if width is None else (width, height)
    blank = clip.std.BlankClip(width=size[0], height=size[1], keep=True)

    def fill(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        large = f[0].copy()
        pixels = np.stack([np.asarray(f[1][plane]) for plane in range(3)], 2)
        result = adabm_kernels.upscale(pixels, network, width=size[0], height=size[1], **settings)
        for plane in range(3):
            np.asarray(large[plane])[:] = result[..., plane]
        return large

    return blank.std.ModifyFrame([blank, clip], fill).std.CopyFrameProps(clip)


def in_rgb(clip: vs.VideoNode) -> vs.VideoNode:
    """A clip of any format as RGB24, or as RGB48 where it has more than 8 bits. Frames that do not say what their colours mean are
    taken for BT.709 from 720 rows on and else for BT.601, as players take them."""
    if clip.format.color_family == vs.RGB and clip.format.id in (vs.RGB24, vs.RGB48):
        return clip
    target = vs.RGB24 if clip.format.bits_per_sample == 8 else vs.RGB48
    if clip.format.color_family == vs.RGB:
        return clip.resize.Bicubic(format=target)
    known = clip.get_frame(0).props.get("_Matrix", vs.MATRIX_UNSPECIFIED) != vs.MATRIX_UNSPECIFIED
    guess = {} if known else {"matrix_in_s": "709" if clip.height >= 720 else "170m"}
    return clip.resize.Bicubic(format=target, **guess)


def in_yuv(clip: vs.VideoNode) -> vs.VideoNode:
    """RGB as YUV 4:2:0 in BT.709, of 8 or 10 bits, which encoders take."""
    target = vs.YUV420P8 if clip.format.id == vs.RGB24 else vs.YUV420P10
    return clip.resize.Bicubic(format=target, matrix_s="709", range_s="limited")


if __name__ == "__vapoursynth__":  # vspipe runs this file, with the values of its options -a as global variables
    given = globals()
    if not os.path.isabs(given.get("source", "")):  # vspipe goes to the folder of the script
        raise ValueError(f'source must be the full path of a video (-a source="$PWD/in.mkv"), got {given.get("source", "none")!r}')
    film = vs.core.bs.VideoSource(given["source"])  # the plugin BestSource
    options = {name: int(given[name]) for name in ("bits", "threads") if name in given}
    in_yuv(upscale(in_rgb(film), given.get("model", "edsr_x4_w4a4"), **options)).set_output()
