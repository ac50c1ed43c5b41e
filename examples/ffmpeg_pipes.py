"""Upscales a film through pipes from and to ffmpeg, with its sound, frame rate and colours.

    python ffmpeg_pipes.py in.mp4 out.mp4 --bits 6 --encode "-c:v libx264 -crf 16"

What happens to each frame is one line of Python, `upscale_film`. Where nothing is to happen besides, `adabm upscale --y4m` does the
same without a program: docs/ffmpeg.md has both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

import adabm_kernels

# What ffprobe calls a matrix of colours -> what ffmpeg's filter `scale` calls it.
MATRICES = {"bt709": "bt709", "smpte170m": "smpte170m", "bt470bg": "bt470", "bt2020nc": "bt2020", "smpte240m": "smpte240m"}
EXACT = "flags=accurate_rnd+full_chroma_int+full_chroma_inp"  # without these, 4:2:0 of 8 bits becomes a level darker


@dataclass(frozen=True)
class Film:
    """What frames do not say themselves.

    rate: frames a second, as a fraction. steady: whether all frames last equally long, so that none has to be repeated or left out.
    deep: whether it has more than 8 bits. matrix: how its colours become RGB. tags: the words of ffprobe for its colours, for the
    result to have them too. pixels: the shape of a pixel, as width/height.
    """

    path: Path
    rate: str
    steady: bool
    deep: bool
    matrix: str
    tags: dict[str, str]
    pixels: str


def probe(path: Path) -> Film:
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_streams", "-of", "json", f"file:{path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (streams := json.loads(done.stdout)["streams"]):
        raise ValueError(f"source must be a film: {done.stderr.strip() or f'there are no pictures in {path}'}")
    (stream,) = streams
    tags = {name: stream.get(f"color_{name}", "unknown") for name in ("space", "primaries", "transfer")}
    if tags["space"] not in MATRICES:  # players take films that do not say it for one of two, by their height
        tags["space"] = "bt709" if stream["height"] >= 720 else "smpte170m"
    deep = re.search(r"(9|1[0-6]|48|64)(le|be)$", stream["pix_fmt"]) is not None
    pixels = stream.get("sample_aspect_ratio", "1:1").replace(":", "/")
    rate = stream["r_frame_rate"]
    steady = stream["avg_frame_rate"] == rate
    return Film(path, rate, steady, deep, MATRICES[tags["space"]], tags, "1/1" if pixels == "0/1" else pixels)


def read_frames(film: Film) -> Iterator[np.ndarray]:
    """The frames, upright and at a constant rate, uint8 or uint16 [H, W, 3]. Each comes as a PPM, which says its size."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", f"file:{film.path}", "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough"] if film.steady else ["-fps_mode", "cfr", "-r", film.rate]
    command += ["-vf", f"scale=in_color_matrix={film.matrix}:{EXACT}", "-pix_fmt", "rgb48be" if film.deep else "rgb24"]
    with subprocess.Popen([*command, "-f", "image2pipe", "-c:v", "ppm", "-"], stdout=subprocess.PIPE) as decoder:
        assert decoder.stdout is not None
        try:
            while (frame := read_ppm(decoder.stdout)) is not None:
                yield frame
        except GeneratorExit:  # nobody wants the rest
            decoder.kill()
            raise
    if decoder.returncode:
        raise RuntimeError(f"ffmpeg could not read '{film.path}' to its end")


def read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    if not stream.readline():  # P6
        return None
    width, height = map(int, stream.readline().split())
    dtype = np.dtype(">u2" if int(stream.readline()) > 255 else "u1")
    pixels = stream.read(height * width * 3 * dtype.itemsize)
    return np.frombuffer(pixels, dtype).reshape(height, width, 3).astype(dtype.newbyteorder("="))


def encoder(film: Film, target: Path, width: int, height: int, options: list[str]) -> subprocess.Popen[bytes]:
    """An ffmpeg that takes frames of this size and writes them with the sound of the film. options: those of the encoder."""
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb48le" if film.deep else "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", film.rate, "-i", "-", "-i", f"file:{film.path}"]
    command += ["-map", "0:v", "-map", "1:a?", "-c:a", "copy", "-map_metadata", "1", "-map_chapters", "1"]
    even = "crop=trunc(iw/2)*2:trunc(ih/2)*2"  # half as many samples of chroma
    colours = f"scale=out_color_matrix={film.matrix}:out_range=limited:{EXACT}"
    command += ["-vf", f"{even},{colours},setsar={film.pixels}"]
    command += ["-pix_fmt", "yuv420p10le" if film.deep else "yuv420p", "-color_range", "tv", "-colorspace", film.tags["space"]]
    command += ["-color_primaries", film.tags["primaries"], "-color_trc", film.tags["transfer"]]
    return subprocess.Popen([*command, *options, f"file:{target}"], stdin=subprocess.PIPE)


def upscale_film(source: Path, target: Path, options: list[str], **settings) -> int:
    """Writes the film in its new size, and returns how many frames it has. The file appears when it is complete."""
    film, unfinished = probe(source), target.with_name(f".unfinished {target.name}")
    writer, count = None, 0
    try:
        for large in adabm_kernels.upscale_many(read_frames(film), **settings):  # work of your own on frames goes here
            if writer is None:
                writer = encoder(film, unfinished, large.shape[1], large.shape[0], options)
            assert writer.stdin is not None
            writer.stdin.write(large.tobytes())
            count += 1
            print(f"\r{count} frames", end="", file=sys.stderr, flush=True)
        if writer is None:
            raise ValueError(f"source must have at least one frame, '{source}' has none")
        writer.communicate()
        if writer.returncode:
            raise BrokenPipeError
        os.replace(unfinished, target)
    except BrokenPipeError as error:
        raise RuntimeError(f"ffmpeg could not write '{target}', for the reason it gives above") from error
    finally:
        print(file=sys.stderr)
        if writer is not None and writer.poll() is None:
            writer.kill()
            writer.wait()
        unfinished.unlink(missing_ok=True)
    return count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="edsr_x4_w4a4")
    parser.add_argument("--scale", type=float, help="the model's own by default")
    parser.add_argument("--bits", type=int, help="2..8, decided for each window of each frame by default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--encode", default="-c:v libx264 -crf 16", help="ffmpeg's options for the result")
    args = parser.parse_args(arguments)
    settings = {"scale": args.scale, "bits": args.bits, "threads": args.threads}
    try:
        model = adabm_kernels.load(args.model)
        count = upscale_film(args.source, args.target, shlex.split(args.encode), model=model, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.target}: {count} frames")


if __name__ == "__main__":
    main()
