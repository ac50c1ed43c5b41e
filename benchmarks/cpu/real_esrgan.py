"""Real-ESRGAN's networks converted, against PyTorch float32 and OpenVINO int8 on the same weights: time in turns, and distance.

    python benchmarks/cpu/real_esrgan.py pictures WEIGHTS --models W6A6.safetensors W4A4.safetensors --pictures DIR
    python benchmarks/cpu/real_esrgan.py video WEIGHTS --models W4A4.safetensors

`pictures`: one 192x192 picture, two forwards of each after the other, the second of them timed, so that what else the machine does
meets all alike; then the PSNR of each, clamped to 0..255, to the float network on all pictures of a folder as they are. `video`:
raw frames of 640x360 through a pipe into each program and out of it; frames a second between the first that came out and the last.
WEIGHTS: the published file. The models are what `adabm calibrate` made of it. Each is held to the integer reference before it is
timed. OpenVINO's int8 is calibrated on crops of the pictures. Prints medians and ratios; keeps all as JSON with `--out`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from adabm_kernels import load
from adabm_kernels.images import read_image
from adabm_kernels.machine import describe_machine
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import detect, float_network, to_float_state

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "cpu"), str(ROOT / "tests" / "helpers")]

from baselines import torch_float32  # noqa: E402
from bench_network import SIZE, check, photo  # noqa: E402
from onnx_baselines import onnx_graph, openvino_forward, quantized  # noqa: E402

WIDTH, HEIGHT = 640, 360
PAUSE = 0.3  # seconds, after which the threads of the previous case have stopped spinning
CALIBRATED_ON = 16  # the number of crops for the calibration of OpenVINO's int8
Forward = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, rounds in (("pictures", 15), ("video", 3)):
        command = commands.add_parser(name)
        command.add_argument("weights", type=Path)
        command.add_argument("--models", type=Path, nargs="+", required=True)
        command.add_argument("--pictures", type=Path, required=name == "pictures")
        command.add_argument("--rounds", type=int, default=rounds)
        command.add_argument("--threads", type=int, default=1 if name == "pictures" else 2)
        command.add_argument("--frames", type=int, default=8)
        command.add_argument("--out", type=Path)
    rival = commands.add_parser("rival", help="raw frames of standard input, upscaled by a rival, to standard output")
    rival.add_argument("runtime", choices=("torch", "openvino"))
    rival.add_argument("file", type=Path)
    rival.add_argument("threads", type=int)
    args = parser.parse_args()
    if args.command == "rival":
        filter_frames(args.runtime, args.file, args.threads)
        return
    result = (time_pictures if args.command == "pictures" else time_video)(args)
    facts = {"command": args.command, "weights": args.weights.name, "date": datetime.date.today().isoformat()}
    facts |= {"machine": describe_machine(), "threads": args.threads, **result}
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


def published(path: Path) -> torch.nn.Module:
    """The float network of a published file, which takes pixels in 0..255."""
    state = load_state(path)
    found = detect(state)
    network = float_network(found.spec)
    network.load_state_dict(to_float_state(state, found))
    return network.eval()


def int8(network: Any, size: tuple[int, int], pictures: list[torch.Tensor]) -> bytes:
    """The network with int8 convolutions as an ONNX model, calibrated on crops of pictures, or on noise where there are none."""
    rows, columns = size
    crops = [x[:, :, :rows, :columns] for x in pictures if x.shape[2] >= rows and x.shape[3] >= columns][:CALIBRATED_ON]
    if not crops:
        repeats = [x.repeat(1, 1, -(-rows // x.shape[2]), -(-columns // x.shape[3])) for x in pictures[:CALIBRATED_ON]]
        crops = [x[:, :, :rows, :columns] for x in repeats] or [torch.rand(1, 3, rows, columns) * 255]
    return quantized(onnx_graph(network, size, False), torch.cat(crops))


def read_pictures(folder: Path) -> dict[str, torch.Tensor]:
    """Every PNG of a folder by its name: float32 [1, 3, h, w] in 0..255."""
    return {p.stem: torch.from_numpy(read_image(p)).permute(2, 0, 1)[None].float() for p in sorted(folder.glob("*.png"))}


# ---- pictures


def time_pictures(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    plain, pictures, x = published(args.weights), read_pictures(args.pictures), photo()
    cases: dict[str, Forward] = {}
    models = {}
    for path in args.models:
        models[path.stem] = model = load(path)
        model.set_threads(args.threads)
        check(model)
        cases[path.stem] = model
    rival = int8(plain, (SIZE, SIZE), list(pictures.values()))
    cases["OpenVINO int8"] = openvino_forward(rival, args.threads)
    cases["OpenVINO float32"] = openvino_forward(onnx_graph(plain, SIZE, False), args.threads)
    distances = distance(plain, models, rival, pictures, args.threads)  # this comes before the weights change their order in memory
    cases["PyTorch float32, channels_last"] = torch_float32(plain)
    for model in models.values():
        model.set_bits(model.config.act_bits)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.no_grad():
        for turn in range(args.rounds + 1):
            for name, forward in cases.items():
                time.sleep(PAUSE)
                forward(x)  # this run is not timed, as the caches hold data of another case
                start = time.perf_counter()
                forward(x)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    first = median(seconds[args.models[0].stem])
    print(f"{args.weights.stem} {SIZE}x{SIZE}, {args.threads} threads, {next(iter(models.values())).backend_summary()}")
    for name, values in seconds.items():
        print(f"{name:32} {1000 * median(values):8.1f} ms  (least {1000 * min(values):.1f})  {median(values) / first:5.2f}")
    for name, found in distances.items():
        values = ", ".join(f"{picture} {value:.2f}" for picture, value in found.items())
        print(f"{name:32} {sum(found.values()) / len(found):6.2f} dB to float32 in the mean: {values}")
    return {"seconds": seconds, "psnr_to_float": distances}


@torch.no_grad()
def distance(
    plain: Any, models: dict[str, Any], rival: bytes, pictures: dict[str, torch.Tensor], threads: int
) -> dict[str, dict[str, float]]:
    """The PSNR in dB to the float network by name and picture: RGB, clamped to 0..255 and not rounded. OpenVINO, whose input has
    one size, gets the corner of each picture that fits into it, padded to that size."""
    runtime = openvino_forward(rival, threads)
    found: dict[str, dict[str, float]] = {name: {} for name in (*models, "OpenVINO int8")}
    for picture, x in pictures.items():
        want = plain(x)
        for name, model in models.items():
            found[name][picture] = psnr(model(x.contiguous()), want)
        rows, columns = (min(side, SIZE) for side in x.shape[2:])
        padded = torch.nn.functional.pad(x[:, :, :rows, :columns], (0, SIZE - columns, 0, SIZE - rows), mode="replicate")
        scale = plain.spec.scale
        inner = (slice(None), slice(None), slice(0, rows * scale), slice(0, columns * scale))
        found["OpenVINO int8"][picture] = psnr(runtime(padded)[inner], plain(padded)[inner])
    return found


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return 10 * math.log10(255**2 / float((a.clamp(0, 255) - b.clamp(0, 255)).square().mean()))


# ---- video


def time_video(args: argparse.Namespace) -> dict[str, Any]:
    plain = published(args.weights)
    frames = moving(args.frames)
    with tempfile.TemporaryDirectory() as folder:
        rival = Path(folder) / "int8.onnx"
        rival.write_bytes(int8(plain, (SIZE, SIZE), [torch.from_numpy(frames[:1]).permute(0, 3, 1, 2).float()]))
        this, threads = [sys.executable, str(Path(__file__))], str(args.threads)
        upscale = [sys.executable, "-m", "adabm_kernels", "upscale", "--raw", f"{WIDTH}x{HEIGHT}", "-", "--threads", threads]
        programs = {path.stem: [*upscale, "--model", str(path), "--quiet"] for path in args.models}
        programs["OpenVINO int8"] = [*this, "rival", "openvino", str(rival), threads]
        programs["PyTorch float32, channels_last"] = [*this, "rival", "torch", str(args.weights), threads]
        rates: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, program in programs.items():
                rates[name].append(rate(program, frames, plain.spec.scale))
    first = median(rates[args.models[0].stem])
    print(f"{args.weights.stem}, raw frames of {WIDTH}x{HEIGHT} through a pipe, {args.threads} threads")
    for name, values in rates.items():
        print(f"{name:32} {median(values):7.2f} frames a second  {first / median(values):5.2f}")
    return {"frames_per_second": rates}


def moving(count: int) -> np.ndarray:
    """Frames of a picture that moves by a pixel from one to the next: uint8 [count, HEIGHT, WIDTH, 3]."""
    tiles = torch.cat([torch.cat([photo()] * 4, 3)] * 2, 2)[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return np.stack([tiles[i : i + HEIGHT, i : i + WIDTH] for i in range(count)])


def rate(program: list[str], frames: np.ndarray, scale: int) -> float:
    """Frames a second, between the first and the last frame that come out of a program."""
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        feeding = threading.Thread(target=_feed, args=(process.stdin, frames.tobytes()))
        feeding.start()
        size, ends = frames[0].nbytes * scale**2, []
        for _ in frames:
            if len(process.stdout.read(size)) < size:
                raise SystemExit(f"{program} ended early")
            ends.append(time.perf_counter())
        feeding.join()
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _feed(pipe: Any, data: bytes) -> None:
    with pipe:
        pipe.write(data)


def filter_frames(runtime: str, file: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    if runtime == "torch":
        forward = torch_float32(published(file))
    else:
        forward = openvino_forward(file.read_bytes(), threads, (1, 3, HEIGHT, WIDTH))
    size = WIDTH * HEIGHT * 3
    with torch.inference_mode():
        while len(frame := sys.stdin.buffer.read(size)) == size:
            x = torch.from_numpy(np.frombuffer(frame, np.uint8).copy()).view(1, HEIGHT, WIDTH, 3).permute(0, 3, 1, 2).float()
            y = forward(x).clamp(0, 255).round().to(torch.uint8)
            sys.stdout.buffer.write(y[0].permute(1, 2, 0).contiguous().numpy())
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
