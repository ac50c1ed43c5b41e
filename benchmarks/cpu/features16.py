"""The second convolution of a residual block with features of 16 bits beside float32, in turns.

    python benchmarks/cpu/features16.py [--sides 96 192] [--bits 4]

64 to 64 channels, 3x3, codes of --bits in and out, the residual added where it lies. Codes and features of both are checked against
the reference first. Bytes are those of an image that a layer reads and writes: codes, the residual, features and the next codes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

from adabm_kernels import native
from adabm_kernels.backends import cpu, reference
from adabm_kernels.backends.call import Conv, Outputs

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "helpers")]

from problems import ConvProblem, bell_codes, instantiate, int16_features, runnable_isas, set_weights  # noqa: E402
from turns import THREADS, in_turns  # noqa: E402

CHANNELS, FRACTION = 64, 11


def layer(side: int, bits: int, isa: str) -> Conv:
    problem = ConvProblem("second", side, side, CHANNELS, CHANNELS, bits=(bits,), out_bits=(bits,), residual=True)
    instance = instantiate(problem)
    set_weights(instance, bell_codes(4, CHANNELS, CHANNELS), "signed", isa)
    return instance.conv("cpu")


def check(conv: Conv) -> None:
    y, y_q = conv.residual.clone(), torch.empty_like(conv.x_q)
    cpu.conv2d_out(replace(conv, residual=y, threads=THREADS), Outputs(y, y_q))
    want, want_q = reference.conv2d(conv, "both")
    assert torch.equal(y, want) and torch.equal(y_q, want_q)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128, 192, 256])
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--isas", nargs="+", default=[isa for isa in runnable_isas() if isa != "scalar"])
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    print(f"milliseconds, median (least) of {args.rounds}, {THREADS} threads; MB a layer")
    print("| isa | bits | side | float32 | int16 | of float32's time | MB float32 | MB int16 |\n|---|---|---|---|---|---|---|---|")
    for isa in args.isas:
        for bits in args.bits:
            for side in args.sides:
                with native.force_isa(isa):
                    conv = layer(side, bits, isa)
                    convs = {"float32": conv, "int16": int16_features(conv, FRACTION)}
                    cases = {}
                    for name, of_features in convs.items():
                        check(of_features)
                        y_q = torch.empty_like(conv.x_q)
                        given = replace(of_features, threads=THREADS)
                        cases[name] = lambda c=given, y_q=y_q: cpu.conv2d_out(c, Outputs(c.residual, y_q))
                    seconds = in_turns(cases, args.rounds)
                median, least = ({name: f(s) for name, s in seconds.items()} for f in (statistics.median, min))
                times = " | ".join(f"{1000 * median[name]:.2f} ({1000 * least[name]:.2f})" for name in cases)
                share = f"{median['int16'] / median['float32']:.2f} ({least['int16'] / least['float32']:.2f})"
                moved = " | ".join(f"{side**2 * CHANNELS * (2 + 2 * c.residual.element_size()) / 1e6:.1f}" for c in convs.values())
                print(f"| {isa} | {bits} | {side} | {times} | {share} | {moved} |", flush=True)


if __name__ == "__main__":
    main()
