"""A stand-in for the module `vapoursynth`, whose wheels need Python 3.12: what of its documented interface the example uses.

"Python Reference" and "Functions" of VapourSynth's documentation: clips with a format, `get_frame`, and filters that are called as
clip.NAMESPACE.FILTER; frames that are read-only until they are copied, with planes by index, and props. `resize.Bicubic` converts
RGB24 to YUV420P8 in BT.709 alone, and `bs.VideoSource` reads the arrays [frames, H, W, 3] of a .npy file.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adabm_kernels.commands.streams import MATRICES, Stream
from adabm_kernels.commands.yuv import from_rgb


@dataclass(frozen=True)
class Format:
    id: int
    name: str
    color_family: int
    bits_per_sample: int


RGB, YUV, RGB24, RGB48, YUV420P8, YUV420P10 = 2, 3, 10, 11, 20, 21
MATRIX_UNSPECIFIED = 2
FORMATS = {RGB24: Format(RGB24, "RGB24", RGB, 8), RGB48: Format(RGB48, "RGB48", RGB, 16)}
FORMATS |= {YUV420P8: Format(YUV420P8, "YUV420P8", YUV, 8), YUV420P10: Format(YUV420P10, "YUV420P10", YUV, 10)}
OUTPUTS: dict[int, VideoNode] = {}


class VideoFrame:
    def __init__(self, form: Format, planes: list[np.ndarray], props: dict[str, Any], readonly: bool = True):
        self.format, self.props, self.readonly = form, dict(props), readonly
        self._planes = [np.array(plane) for plane in planes]
        self.height, self.width = self._planes[0].shape
        for plane in self._planes:
            plane.flags.writeable = not readonly

    def copy(self) -> VideoFrame:
        return VideoFrame(self.format, self._planes, self.props, readonly=False)

    def __getitem__(self, plane: int) -> memoryview:
        return self._planes[plane].data


@dataclass(frozen=True)
class VideoNode:
    format: Format
    width: int
    height: int
    num_frames: int
    made: Callable[[int], VideoFrame] = field(repr=False)

    def get_frame(self, n: int) -> VideoFrame:
        frame = self.made(n)
        assert (frame.format, frame.width, frame.height) == (self.format, self.width, self.height)
        return VideoFrame(frame.format, frame._planes, frame.props)

    def set_output(self, index: int = 0) -> None:
        OUTPUTS[index] = self

    @property
    def std(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(BlankClip=self._blank_clip, ModifyFrame=self._modify_frame, CopyFrameProps=self._copy_props)

    @property
    def resize(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(Bicubic=self._bicubic)

    def _blank_clip(self, width: int, height: int, keep: bool = False) -> VideoNode:
        dtype = np.uint8 if self.format.bits_per_sample == 8 else np.uint16
        frame = VideoFrame(self.format, [np.zeros((height, width), dtype)] * 3, {})
        return replace(self, width=width, height=height, made=lambda n: frame)

    def _modify_frame(self, clips: list[VideoNode], selector: Callable) -> VideoNode:
        return replace(self, made=lambda n: selector(n, [clip.get_frame(n) for clip in clips]))

    def _copy_props(self, prop_src: VideoNode) -> VideoNode:
        return replace(self, made=lambda n: VideoFrame(self.format, self.made(n)._planes, prop_src.get_frame(n).props))

    def _bicubic(self, format: int, matrix_s: str, range_s: str) -> VideoNode:
        assert (self.format.id, format, matrix_s, range_s) == (RGB24, YUV420P8, "709", "limited")
        words = Stream(self.width, self.height, "", (), (2, 2), 8, False, MATRICES["bt709"], (0, 1))

        def made(n: int) -> VideoFrame:
            frame = self.get_frame(n)
            return VideoFrame(FORMATS[format], from_rgb(np.stack(frame._planes, 2), words), frame.props | {"_Matrix": 1})

        return replace(self, format=FORMATS[format], made=made)


def from_arrays(frames: np.ndarray, form: int = RGB24) -> VideoNode:
    """A clip of frames [n, H, W, 3], each with its number as the property Number."""

    def made(n: int) -> VideoFrame:
        return VideoFrame(FORMATS[form], list(np.moveaxis(frames[n], 2, 0)), {"Number": n})

    return VideoNode(FORMATS[form], frames.shape[2], frames.shape[1], len(frames), made)


core = types.SimpleNamespace(bs=types.SimpleNamespace(VideoSource=lambda source: from_arrays(np.load(source))))


def get_output(index: int = 0) -> VideoNode:
    return OUTPUTS[index]


def clear_outputs() -> None:
    OUTPUTS.clear()
