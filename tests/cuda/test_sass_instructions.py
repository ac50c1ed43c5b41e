"""Single instructions of the interpreter in sass/, and what it refuses, on programs of a few lines."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from sass import machine, parse, timing
from sass.block import Block, Launch
from sass.cubin import Kernel
from sass.floating import fused
from sass.machine import FULL, MachineError
from sass.memory import Region

LANE = np.arange(32, dtype=np.uint32)
MINUS = FULL  # -1 as a word


def program(lines: list[str], banks: dict[int, bytes] | None = None) -> Kernel:
    code = tuple(parse.instruction(line, 16 * i) for i, line in enumerate([*lines, "EXIT"]))
    return Kernel("by_hand", code, {0: bytes(0x400)} | (banks or {}), 0x210, 256)


def execute(lines: list[str], registers: dict | None = None, *, threads: int = 32, regions=(), parameters: bytes = b"") -> Block:
    """Runs a block of these lines. registers: R, U (uniform), P (sets of lanes) by name, in every warp."""
    block = Block(Launch(program(lines), (1, 1), threads, 1024, parameters, 9), (0, 0), list(regions))
    for w in block.warps:
        for name, value in (registers or {}).items():
            if name.startswith("UP"):
                w.UP[int(name[2:])] = bool(value)
            elif name.startswith("U"):
                w.U[int(name[2:])][:] = value
            elif name.startswith("P"):
                w.P[int(name[1:])] = value
            else:
                w.R[int(name[1:])][:] = value
    return block.run()


def bits(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


# The line; words that go in; words and predicates that come out.
ARITHMETIC = [
    ("IADD3 R1, R2, R3, R4", {"R2": 5, "R3": FULL, "R4": 7}, {"R1": 11}),
    ("IADD3 R1, P0, R2, R3, RZ", {"R2": FULL, "R3": 1}, {"R1": 0, "P0": FULL}),
    ("IADD3 R1, P0, P1, R2, R3, R4", {"R2": FULL, "R3": FULL, "R4": FULL}, {"R1": FULL - 2, "P0": FULL, "P1": FULL}),
    ("IADD3 R1, P0, P1, R2, R3, R4", {"R2": FULL, "R3": FULL, "R4": 1}, {"R1": FULL, "P0": FULL, "P1": 0}),
    # a - b carries where it does not borrow, nothing included.
    ("IADD3 R1, P0, R2, -R3, RZ", {"R2": 7, "R3": 0}, {"R1": 7, "P0": FULL}),
    ("IADD3 R1, P0, R2, -R3, RZ", {"R2": 7, "R3": 8}, {"R1": FULL, "P0": 0}),
    ("IADD3 R1, P0, RZ, -R3, RZ", {"R3": 0}, {"R1": 0, "P0": FULL}),
    ("IADD3 R1, P0, R2, -0x1, RZ", {"R2": 0}, {"R1": FULL, "P0": 0}),
    ("IADD3.X R1, R2, ~R3, RZ, P0, !PT", {"R2": 9, "R3": 4, "P0": FULL}, {"R1": 5}),
    ("IADD3.X R1, P1, R2, RZ, RZ, P0, !PT", {"R2": FULL, "P0": FULL}, {"R1": 0, "P1": FULL}),
    ("UIADD3 UR1, UP0, UR2, UR3, URZ", {"UR2": FULL, "UR3": 2}, {"UR1": 1, "UP0": True}),
    ("UIADD3.64 UR4, UR2, 0x10, URZ", {"UR2": FULL, "UR3": 2}, {"UR4": 15, "UR5": 3}),
    ("IMAD R1, R2, -R3, R4", {"R2": 3, "R3": 5, "R4": 1}, {"R1": FULL - 13}),
    ("IMAD.MOV R1, RZ, RZ, -R3", {"R3": 2}, {"R1": FULL - 1}),
    ("IMAD.IADD R1, R2, 0x1, -R3", {"R2": 9, "R3": 4}, {"R1": 5}),
    ("IMAD.SHL.U32 R1, R2, 0x10, RZ", {"R2": 0x12345678}, {"R1": 0x23456780}),
    ("IMAD.X R1, RZ, RZ, R3, P0", {"R3": 4, "P0": FULL}, {"R1": 5}),
    ("IMAD.WIDE R4, R2, R3, R6", {"R2": MINUS, "R3": 3, "R6": 1, "R7": 0}, {"R4": FULL - 1, "R5": FULL}),
    ("IMAD.WIDE.U32 R4, R2, R3, R6", {"R2": MINUS, "R3": 3, "R6": 5, "R7": 1}, {"R4": 2, "R5": 4}),
    ("IMAD.WIDE.U32 R4, R2, 0x10, RZ", {"R2": 0x10000001}, {"R4": 16, "R5": 1}),
    # A pair is added before the upper half is taken: how quotients are refined.
    ("IMAD.HI.U32 R1, R3, R5, R2", {"R2": 0, "R3": 7, "R5": 0x80000000}, {"R1": 10}),
    ("IMAD.HI R1, R3, R5, RZ", {"R3": MINUS, "R5": 5}, {"R1": FULL}),
    ("LEA R1, P0, R2, R3, 0x2", {"R2": 0x40000001, "R3": 8}, {"R1": 12, "P0": 0}),  # what is shifted out does not carry
    ("LEA R1, P0, R2, R3, 0x1", {"R2": 0x7FFFFFFF, "R3": 8}, {"R1": 6, "P0": FULL}),
    ("LEA.HI R1, R2, R3, RZ, 0x1", {"R2": 0x80000000, "R3": 8}, {"R1": 9}),
    ("LEA.HI R1, R2, R3, R4, 0x4", {"R2": 0xF0000000, "R3": 1, "R4": 2}, {"R1": 0x30}),
    ("LEA.HI.X R1, R2, R3, R4, 0x2, P0", {"R2": 0x40000000, "R3": 1, "R4": 2, "P0": FULL}, {"R1": 11}),
    ("LEA.HI.X.SX32 R1, R2, R3, 0x1, P0", {"R2": MINUS, "R3": 3, "P0": FULL}, {"R1": 3}),
    ("ULEA.HI UR1, UR2, UR3, URZ, 0x1", {"UR2": 0x80000000, "UR3": 8}, {"UR1": 9}),
    ("LOP3.LUT R1, R2, R3, R4, 0xca, !PT", {"R2": 0xFF00, "R3": 0x1234, "R4": 0xABCD}, {"R1": 0x12CD}),
    ("LOP3.LUT R1, R2, R3, R4, 0xea, !PT", {"R2": 0xFF00, "R3": 0x1234, "R4": 0x1}, {"R1": 0x1201}),
    ("LOP3.LUT R1, R2, R3, RZ, 0x30, !PT", {"R2": 0xFF00, "R3": 0x1234}, {"R1": 0xED00}),
    ("LOP3.LUT R1, RZ, R3, RZ, 0x33, !PT", {"R3": 0}, {"R1": FULL}),
    ("LOP3.LUT P0, RZ, R2, 0x1, RZ, 0xc0, !PT", {"R2": LANE}, {"P0": 0xAAAAAAAA}),
    ("LOP3.LUT P0, R1, R2, 0x1, RZ, 0xc0, P1", {"R2": LANE, "P1": 1}, {"R1": LANE & 1, "P0": 0xAAAAAAAB}),
    ("LOP3.LUT.PAND P0, R1, R2, 0x1, RZ, 0xc0, P1", {"R2": LANE, "P1": 3}, {"P0": 2}),
    ("PLOP3.LUT P0, PT, P1, PT, PT, 0x8, 0x0", {"P1": 5}, {"P0": FULL ^ 5}),
    ("PLOP3.LUT P0, P1, P2, P3, UP0, 0x80, 0xfe", {"P2": 6, "P3": 3, "UP0": 1}, {"P0": 2, "P1": FULL}),
    ("SHF.L.U32 R1, R2, R3, RZ", {"R2": 3, "R3": LANE + 20}, {"R1": [3 << k & FULL if k < 32 else 0 for k in range(20, 52)]}),
    ("SHF.R.S32.HI R1, RZ, R3, R2", {"R2": 0x80000000, "R3": 40}, {"R1": FULL}),
    ("SHF.R.U32.HI R1, RZ, 0x1f, R2", {"R2": 0x80000000}, {"R1": 1}),
    ("SHF.L.U64.HI R1, R2, 0x4, R3", {"R2": 0xF0000000, "R3": 1}, {"R1": 0x1F}),
    ("SHF.R.U64 R1, R2, 0x4, R3", {"R2": 0x10, "R3": 0xF}, {"R1": 0xF0000001}),
    ("SHF.R.W.U32 R1, R2, R4, R3", {"R2": 0x10, "R3": 0xF, "R4": 36}, {"R1": 0xF0000001}),
    ("SGXT R1, R2, 0x4", {"R2": 0x1A}, {"R1": FULL - 5}),
    ("SGXT.U32 R1, R2, 0x4", {"R2": 0x1A}, {"R1": 10}),
    ("BMSK R1, R2, R3", {"R2": 4, "R3": 8}, {"R1": 0xFF0}),
    ("FLO.U32 R1, R2", {"R2": np.where(LANE > 0, 1 << LANE, 0)}, {"R1": [FULL, *range(1, 32)]}),
    ("POPC R1, R2", {"R2": 0xF00F}, {"R1": 8}),
    ("IABS R1, R2", {"R2": MINUS}, {"R1": 1}),
    ("BREV R1, R2", {"R2": 3}, {"R1": 0xC0000000}),
    ("IDP.4A.U8.S8 R1, R2, R3, R4", {"R2": 0xFF020301, "R3": 0xFF0102FE, "R4": 1}, {"R1": FULL & (1 - 255 + 2 + 6 - 2)}),
    ("IDP.2A.LO.U16.U8 R1, R2, R3, R4", {"R2": 0x00030002, "R3": 0xFFFF0A05, "R4": 1}, {"R1": 41}),
    ("IDP.2A.HI.S16.S8 R1, R2, R3, RZ", {"R2": 0xFFFF0002, "R3": 0xFF030A05}, {"R1": 7}),
    ("UP2UR UR1, UPR, UR2, 0x3", {"UP1": 1, "UP2": 1, "UR2": 0xF1}, {"UR1": 0xF2}),
    ("UR2UP UPR, UR2, 0x3", {"UR2": 2, "UP0": 1, "UP2": 1}, {"UP0": False, "UP1": True, "UP2": True}),
    ("ISETP.GE.AND P0, P1, R2, R3, P2", {"R2": MINUS, "R3": 0, "P2": 0xF0}, {"P0": 0, "P1": 0xF0}),
    ("ISETP.GE.U32.AND P0, PT, R2, R3, PT", {"R2": MINUS, "R3": 0}, {"P0": FULL}),
    ("ISETP.NE.OR P0, PT, R2, RZ, !P1", {"R2": LANE, "P1": 0xF}, {"P0": FULL - 1}),
    ("ISETP.GE.AND.EX P0, PT, R2, R3, PT, P1", {"R2": 5, "R3": 5, "P1": 3}, {"P0": 3}),
    ("SEL R1, R2, 0x7, P0", {"R2": LANE, "P0": 0xFFFF}, {"R1": [*range(16), *[7] * 16]}),
    ("FSEL R1, R2, -RZ, !P0", {"R2": bits(1.5), "P0": FULL}, {"R1": 0x80000000}),
    ("VIMNMX R1, R2, R3, !PT", {"R2": MINUS, "R3": 2}, {"R1": 2}),
    ("VIMNMX.U32 R1, R2, R3, !PT", {"R2": MINUS, "R3": 2}, {"R1": FULL}),
    ("VIADDMNMX R1, R2, -R3, RZ, !PT", {"R2": 2, "R3": 5}, {"R1": 0}),
    ("VIADDMNMX.RELU R1, R2, R3, R4, PT", {"R2": 2, "R3": FULL - 5, "R4": 9}, {"R1": 0}),
    ("VIADDMNMX.S16x2.RELU R1, R2, R3, R4, PT", {"R2": 0x7FFF0001, "R3": 0x00020003, "R4": 0x00050003}, {"R1": 3}),
    ("VIADD.16x2 R1, R2, -R3", {"R2": 0x00010000, "R3": 0x00010001}, {"R1": 0xFFFF}),
    ("VIMNMX.S16x2 R1, R2, R3, !PT", {"R2": 0x80007FFF, "R3": 0xFFFF0001}, {"R1": 0xFFFF7FFF}),
    ("VIMNMX3 R1, R2, R3, R4, PT", {"R2": 4, "R3": MINUS, "R4": 3}, {"R1": MINUS}),
    ("PRMT R1, R2, 0x5410, R3", {"R2": 0x44332211, "R3": 0x88776655}, {"R1": 0x66552211}),
    ("PRMT R1, R2, 0xba98, RZ", {"R2": 0x80FF7F01}, {"R1": 0xFFFF0000}),  # signs
    ("PRMT R1, R2, R4, R3", {"R2": 0x44332211, "R3": 0x88776655, "R4": LANE}, {"R1": "by_lane"}),
    ("PRMT.RC8 R1, R2, 0x2, RZ", {"R2": 0x44332211}, {"R1": 0x33333333}),
    ("PRMT.F4E R1, R2, 0x1, R3", {"R2": 0x44332211, "R3": 0x88776655}, {"R1": 0x55443322}),
    ("PRMT.B4E R1, R2, 0x1, R3", {"R2": 0x44332211, "R3": 0x88776655}, {"R1": 0x77881122}),
    ("PRMT.ECL R1, R2, 0x2, RZ", {"R2": 0x44332211}, {"R1": 0x44333333}),
    ("PRMT.ECR R1, R2, 0x2, RZ", {"R2": 0x44332211}, {"R1": 0x33332211}),
    ("PRMT.RC16 R1, R2, 0x1, RZ", {"R2": 0x44332211}, {"R1": 0x44334433}),
    ("P2R R1, PR, R2, 0x5", {"P0": FULL, "P1": FULL, "P2": 1, "R2": 0xF0}, {"R1": [0xF5, *[0xF1] * 31]}),
    ("R2P PR, R2, 0x3", {"R2": LANE, "P2": 7}, {"P0": 0xAAAAAAAA, "P1": 0xCCCCCCCC, "P2": 7}),
    ("R2P PR, R2.B1, 0x1", {"R2": 0x100}, {"P0": FULL}),
    ("VOTE.ANY R1, P0, P1", {"P1": 0xF0}, {"R1": 0xF0, "P0": FULL}),
    ("VOTEU.ALL UP0, P1", {"P1": FULL - 1}, {"UP0": False}),
    ("ELECT P0, URZ, PT", {}, {"P0": 1}),
    ("REDUX.SUM UR1, R2", {"R2": LANE}, {"UR1": 496}),
    ("S2R R1, SR_TID.X", {}, {"R1": LANE}),
    ("CS2R R2, SRZ", {"R2": 1, "R3": 1}, {"R2": 0, "R3": 0}),
    ("SHFL.IDX PT, R1, R2, R3, 0x1f", {"R2": LANE * 3, "R3": 5}, {"R1": 15}),
    ("SHFL.DOWN P0, R1, R2, 0x4, 0x1f", {"R2": LANE}, {"R1": [*range(4, 32), 28, 29, 30, 31], "P0": FULL >> 4}),
    ("SHFL.UP P0, R1, R2, 0x1, RZ", {"R2": LANE}, {"R1": [0, *range(31)], "P0": FULL - 1}),
    ("SHFL.BFLY PT, R1, R2, 0x1, 0x1c1f", {"R2": LANE}, {"R1": LANE ^ 1}),
]
FLOATS = [
    ("FADD R1, R2, -R3", {"R2": bits(3.0), "R3": bits(1.0)}, bits(2.0)),
    ("FADD R1, R2, |R3|", {"R2": bits(3.0), "R3": bits(-1.0)}, bits(4.0)),
    ("FADD R1, R2, 12582912", {"R2": bits(2.5)}, 0x4B400002),  # rounds to even
    ("FADD R1, R2, 12582912", {"R2": bits(3.5)}, 0x4B400004),
    ("FMUL R1, R2, 0.5", {"R2": 0x00800000}, 0x00400000),  # below the normal numbers
    ("FMUL.FTZ R1, R2, 0.5", {"R2": 0x00800000}, 0),
    ("FFMA R1, R2, R3, -R4", {"R2": bits(1 + 2**-12), "R3": bits(1 + 2**-12), "R4": bits(1 + 2**-11)}, bits(2.0**-24)),
    ("FADD.RZ R1, R2, R3", {"R2": bits(1.0), "R3": bits(-(2.0**-40))}, bits(1 - 2.0**-24)),
    ("FADD.RM R1, R2, R3", {"R2": bits(1.0), "R3": bits(2.0**-24)}, bits(1.0)),
    ("FADD.RP R1, R2, R3", {"R2": bits(1.0), "R3": bits(2.0**-40)}, bits(1 + 2.0**-23)),
    ("FMUL.RZ R1, R2, R3", {"R2": bits(-(1 + 2.0**-23)), "R3": bits(1 + 2.0**-23)}, bits(-(1 + 2.0**-22))),
    ("FFMA.RZ R1, R2, R3, R4", {"R2": bits(1.5), "R3": bits(2.0**-24), "R4": bits(1.0)}, bits(1.0)),
    ("FADD.SAT R1, RZ, R2", {"R2": bits(1.5)}, bits(1.0)),
    ("FRND.FLOOR R1, R2", {"R2": bits(-1.5)}, bits(-2.0)),
    ("FMNMX R1, R2, R3, !PT", {"R2": bits(-0.0), "R3": bits(0.0)}, bits(0.0)),
    ("FMNMX R1, R2, R3, PT", {"R2": bits(0.0), "R3": bits(-0.0)}, bits(-0.0)),
    ("FMNMX R1, R2, 255, PT", {"R2": bits(math.nan)}, bits(255.0)),
    ("MUFU.RCP R1, R2", {"R2": bits(4.0)}, bits(0.25)),
    ("I2F R1, R2", {"R2": MINUS}, bits(-1.0)),
    ("I2FP.F32.S32 R1, R2", {"R2": 16777217}, bits(16777216.0)),
    ("I2FP.F32.U32 R1, R2", {"R2": MINUS}, bits(2.0**32)),
    ("I2F.U32.RP R1, R2", {"R2": 16777217}, bits(16777218.0)),
    ("I2F.U8 R1, R2.B1", {"R2": 0xFF80}, bits(255.0)),
    ("I2F.S8 R1, R2.B0", {"R2": 0xFF80}, bits(-128.0)),
    ("F2I.U32.NTZ R1, R2", {"R2": bits(2.5)}, 2),
    ("F2I.U32.NTZ R1, R2", {"R2": bits(-7.0)}, 0),
    ("F2I.TRUNC.NTZ R1, R2", {"R2": bits(-2.75)}, FULL - 1),
    ("F2I.NTZ R1, R2", {"R2": bits(math.nan)}, 0),
    ("F2I.S16.NTZ R1, R2", {"R2": bits(1e9)}, 32767),
    ("I2IP.U8.S32.SAT R1, R2, R3, R4", {"R2": 300, "R3": MINUS, "R4": 0x7788}, 0x7788FF00),
    ("I2IP.S16.S32.SAT R1, R2, R3", {"R2": 70000, "R3": FULL - 70000}, 0x7FFF8000),
    ("HMNMX2 R1, R2, R3, PT", {"R2": 0x3C00C000, "R3": 0xBC000001}, 0xBC00C000),  # 1, -2; -1, 2^-24
    ("HMNMX2 R1, R2, R3, !PT", {"R2": 0x7E008000, "R3": 0x3C000000}, 0x3C000000),  # no number, -0; 1, +0
    ("HADD2 R1, R2, 1, -1", {"R2": 0x3C003C00}, 0x40000000),
    ("HFMA2.MMA R1, -RZ, RZ, 0, 5.9604644775390625e-08", {}, 0x00000001),
    ("HFMA2 R1, R2.H0_H0, R3, -R4", {"R2": 0x00004000, "R3": 0x40003C00, "R4": 0x3C003C00}, 0x42003C00),
    ("HADD2.F32 R1, -RZ, R2.H1_H1", {"R2": 0xC0003C00}, bits(-2.0)),
    ("F2FP.PACK_AB R1, RZ, R3", {"R3": bits(65519.0)}, 0x00007BFF),
    ("F2F.F16.F32 R1, R2", {"R2": bits(1.0)}, 0x3C00),
    ("F2FP.F16.F32.PACK_AB R1, R2, R3", {"R2": bits(1.0), "R3": bits(-2.0)}, 0x3C00C000),
]


@pytest.mark.parametrize("line, given, wanted", ARITHMETIC, ids=[line for line, _, _ in ARITHMETIC])
def test_words_and_predicates(line: str, given: dict, wanted: dict) -> None:
    w = execute([line], given).warps[0]
    for name, value in wanted.items():
        if name.startswith("UP"):
            assert w.UP[int(name[2:])] == value, name
        elif name.startswith("P"):
            assert w.P[int(name[1:])] == value, name
        elif name.startswith("U"):
            assert w.U[int(name[2:])][0] == value, name
        elif isinstance(value, str):  # a selector that differs by lane
            eight = [0x11 * (i + 1) for i in range(8)]
            want = [eight[k & 7] if not k & 8 else 255 * (eight[k & 7] >> 7) for k in (int(lane) & 15 for lane in LANE)]
            assert (w.R[1] & 255).tolist() == want
        else:
            assert w.R[int(name[1:])].tolist() == np.broadcast_to(value, 32).tolist(), name


@pytest.mark.parametrize("line, given, wanted", FLOATS, ids=[f"{line} {given}" for line, given, _ in FLOATS])
def test_floats(line: str, given: dict, wanted: int) -> None:
    assert execute([line], given).warps[0].R[1].tolist() == [wanted] * 32


@pytest.mark.parametrize(
    "compare, lanes",
    [("LT", 0b0001), ("GE", 0b0110), ("GEU", 0b1110), ("NE", 0b0101), ("NEU", 0b1101), ("NUM", 0b0111), ("NAN", 0b1000)],
)
def test_float_comparisons_know_what_is_no_number(compare: str, lanes: int) -> None:
    values = np.array([-1.0, 0.0, 1.0, math.nan] * 8, np.float32).view(np.uint32)
    w = execute([f"FSETP.{compare}.AND P0, PT, R2, RZ, PT"], {"R2": values}).warps[0]
    assert w.P[0] == lanes * 0x11111111


def test_a_fused_sum_is_rounded_once() -> None:
    """Against exact arithmetic: cases where rounding to double and then to float32 is wrong, and drawn ones."""
    generator = np.random.default_rng(0)
    a, b, c = (generator.standard_normal(4000).astype(np.float32) for _ in range(3))
    # 1 + 2^-23 is halfway past 1 with what the product adds far below: ties of the second rounding.
    a[:2], b[:2], c[:2] = 2.0**-30, [2.0**-40, -(2.0**-40)], 1.0
    a[2:4], b[2:4], c[2:4] = 1 + 2.0**-12, [1 + 2.0**-12, -1 - 2.0**-12], 2.0**25
    a[4], b[4], c[4] = 2.0**-24, 1 + 2.0**-23, 1.0
    a[5], b[5], c[5] = 2.0**-75, 2.0**-74 * (1 + 2.0**-20), -(2.0**-140)
    got = fused(a, b, c)
    for x, y, z, found in zip(a.tolist(), b.tolist(), c.tolist(), got, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        near = [float(np.nextafter(found, np.float32(s), dtype=np.float32)) for s in (-np.inf, np.inf)]
        error = abs(Fraction(float(found)) - exact)
        for other in near:
            assert error < abs(Fraction(other) - exact) or (
                error == abs(Fraction(other) - exact) and not int(found.view(np.uint32)) & 1
            ), (x, y, z)


# ---- lanes that part and meet


def test_lanes_part_at_a_branch_and_meet_again() -> None:
    """Both sides are executed, and counted, and what follows is executed once."""
    lines = [
        "S2R R0, SR_TID.X",  # 0x00
        "ISETP.GE.AND P0, PT, R0, 0x8, PT",
        "BSSY B0, 0x80",  # 0x20
        "@P0 BRA 0x60",
        "IMAD.MOV.U32 R1, RZ, RZ, 0x1",  # 0x40
        "BRA 0x70",
        "IMAD.MOV.U32 R1, RZ, RZ, 0x2",  # 0x60
        "BSYNC B0",
        "VOTE.ANY R2, PT, PT",  # 0x80
    ]
    block = execute(lines)
    w = block.warps[0]
    assert w.R[1].tolist() == [1] * 8 + [2] * 24 and w.R[2].tolist() == [FULL] * 32
    assert w.counts == [1, 1, 1, 1, 1, 1, 1, 2, 1, 1] and w.slots == 11


def test_what_a_guard_leaves_out_takes_a_slot() -> None:
    block = Block(Launch(program(["@P0 MOV R1, R2", "@!P0 MOV R1, R3"]), (1, 1), 32, 1024, b"", 9), (0, 0), [], trace=(0,))
    w = block.run().warps[0]
    assert w.trace == [~0, 1, 2] and w.slots == 3


def test_a_loop_that_lanes_leave_one_after_the_other() -> None:
    lines = [
        "S2R R0, SR_TID.X",  # 0x00
        "CS2R R2, SRZ",
        "BSSY B1, 0x70",  # 0x20
        "VIADD R2, R2, 0x1",
        "ISETP.LE.AND P0, PT, R2, R0, PT",  # 0x40
        "@P0 BRA 0x30",
        "BSYNC B1",  # 0x60
        "VOTE.ANY R3, PT, PT",
    ]
    w = execute(lines).warps[0]
    assert w.R[2].tolist() == list(range(1, 33)) and w.R[3].tolist() == [FULL] * 32
    assert w.counts[3] == 32


def test_lanes_that_leave_a_barrier_or_end_are_not_waited_for() -> None:
    lines = [
        "S2R R0, SR_TID.X",  # 0x00
        "ISETP.LT.AND P0, PT, R0, 0x4, PT",
        "ISETP.LT.AND P1, PT, R0, 0x8, PT",  # 0x20
        "BSSY B0, 0x70",
        "@P0 EXIT",  # 0x40
        "@P1 BREAK B0",
        "BSYNC B0",  # 0x60: those that broke never come here
        "VOTE.ANY R1, PT, PT",
    ]
    lines[5:6] = ["BREAK P1, B0", "@P1 BRA 0x80"]
    lines[3] = "BSSY B0, 0x80"
    w = execute(lines).warps[0]
    assert w.R[1].tolist()[8:] == [FULL & ~255] * 24 and w.R[1].tolist()[4:8] == [0xF0] * 4


def test_a_jump_by_a_table() -> None:
    lines = [
        "S2R R0, SR_TID.X",  # 0x00
        "LOP3.LUT R2, R0, 0x1, RZ, 0xc0, !PT",
        "IMAD R2, R2, 0x20, RZ",  # 0x20
        "IMAD.MOV.U32 R3, RZ, RZ, RZ",
        "BRX R2 0x0",  # 0x40: 0x50 and 0x70
        "IMAD.MOV.U32 R1, RZ, RZ, 0x5",
        "BRA 0x80",  # 0x60
        "IMAD.MOV.U32 R1, RZ, RZ, 0x7",
    ]
    assert execute(lines).warps[0].R[1].tolist() == [5, 7] * 16


@pytest.mark.parametrize(
    "line, message",
    [
        ("FROB.X R1, R2", r"instruction not known: 0x0010 FROB.X R1, R2"),
        ("FADD.XX R1, R2, R3", r"instruction not known: 0x0010 FADD.XX R1, R2, R3: suffix XX"),
        ("MOV R1, SR_FOO", r"instruction not known: .*operand 'SR_FOO'"),
        ("BRA 0x1000", r"a jump to 0x1000, where the kernel has no instruction"),
        ("R2UR UR1, R0", r"lanes that differ become one uniform register"),
        ("BSYNC B3", r"BSYNC B3 without BSSY"),
        ("IMMA.16832.U8.S8 R4, R8.ROW, R2.COL, RZ", None),
        ("@P0 LDSM.16.M88.4 R4, [RZ]", r"LDSM by some of a warp's lanes"),
    ],
)
def test_what_is_not_known_or_not_done_is_named(line: str, message: str | None) -> None:
    if message is None:
        execute(["S2R R0, SR_TID.X", line])
        return
    with pytest.raises(MachineError, match=message):
        execute(["S2R R0, SR_TID.X", line], {"P0": 5})


def test_a_loop_without_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ENDLESS", 1000)
    with pytest.raises(MachineError, match="1000 instructions without a wait: a loop without end"):
        execute(["NOP", "BRA 0x0"])


# ---- memory


def region(size: int, writable: bool = True, begin: int = 1 << 20) -> Region:
    return Region(begin, np.arange(size, dtype=np.uint8), writable, "the buffer")


POINTER = ["S2R R0, SR_TID.X", "IMAD.MOV.U32 R2, RZ, RZ, 0x100000", "IMAD.MOV.U32 R3, RZ, RZ, RZ"]


def test_global_loads_and_stores_of_every_width() -> None:
    memory = region(1024)
    lines = [*POINTER, "IMAD.WIDE.U32 R2, R0, 0x10, R2", "LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E.U8 R8, [R2.64+0x3]"]
    lines += ["LDG.E.S8 R9, [R2.64+0x3]", "STG.E.128 [R2.64+0x200], R4", "STG.E.U8 [R2.64+0x201], R0", "STG.E.64 [R2.64+0x208], R8"]
    memory.data[:512] = np.arange(512) % 256
    w = execute(lines, regions=[memory]).warps[0]
    words = (np.arange(512) % 256).astype(np.uint8).view(np.uint32).reshape(32, 4)
    assert np.array_equal(np.stack(w.R[4:8], 1), words)
    assert np.array_equal(w.R[8], words[:, 0] >> 24) and (w.R[9].view(np.int32) == w.R[8].astype(np.uint8).view(np.int8)).all()
    out = memory.data[512:].view(np.uint32).reshape(32, 4)
    want = words.copy()
    want[:, 0] = want[:, 0] & 0xFFFF00FF | LANE << 8
    want[:, 2], want[:, 3] = w.R[8], w.R[9]
    assert np.array_equal(out, want)


@pytest.mark.parametrize(
    "line, message",
    [
        ("LDG.E R4, [R2.64+0x3ff]", "no multiple of 4|of the buffer, which has 1024"),
        ("LDG.E R4, [R2.64+0x400]", "4 bytes at byte 1024 of the buffer, which has 1024"),
        ("LDG.E R4, [R2.64+-0x4]", "4 bytes at 0xffffc, outside every region"),
        ("LDG.E.64 R4, [R2.64+0x4]", "a global address that is no multiple of 8"),
        ("STG.E [R2.64], R4", "a write of 4 bytes to the buffer, which is only read"),
    ],
)
def test_global_accesses_that_are_found(line: str, message: str) -> None:
    with pytest.raises(MachineError, match=message):
        execute([*POINTER, line], regions=[region(1024, writable=False)])


SHARED = ["S2R R0, SR_TID.X", "LEA R1, R0, 0x400, 0x4"]


def test_shared_memory_and_matrices() -> None:
    """A matrix of 8 by 8 halves is spread over a warp, and gathered again, as ldmatrix and stmatrix do it."""
    lines = [*SHARED, *(f"IMAD R{4 + i}, R0, 0x4, {i:#x}" for i in range(4)), "IADD3 R5, R5, 0x0, RZ"]
    lines = [*SHARED, "IMAD.SHL.U32 R4, R0, 0x4, RZ", *(f"IADD3 R{4 + i}, R4, {i:#x}, RZ" for i in (1, 2, 3))]
    lines += ["STS.128 [R1], R4", "BAR.SYNC 0x0", "LDSM.16.M88.4 R8, [R1]", "LDSM.16.MT88.4 R12, [R1]", "MOVM.16.MT88 R16, R8"]
    lines += ["STSM.16.M88.4 [R1+0x200], R8", "BAR.SYNC 0x0", "LDS.128 R20, [R1+0x200]", "LDS.U8 R24, [R1+0x4]"]
    w = execute(lines).warps[0]
    words = (np.arange(128)).reshape(32, 4)  # row of 16 bytes i is words 4 i ..
    assert np.array_equal(w.values[8:12], np.stack([words[8 * m + LANE // 4, LANE % 4] for m in range(4)]))
    halves = words.astype(np.uint32).view(np.uint16).reshape(4, 8, 8)
    want = np.ascontiguousarray(halves.transpose(0, 2, 1)).view(np.uint32).reshape(4, 32)
    assert np.array_equal(w.values[12:16], want) and np.array_equal(w.R[16], want[0])
    assert np.array_equal(w.values[20:24].T, words) and np.array_equal(w.R[24], words[:, 1] & 255)


@pytest.mark.parametrize(
    "lines, message",
    [
        (["LDS R2, [R1]"], "a read of byte 0x400 of shared memory, which nothing has written"),
        (["STS [R1+0x3f0], R0"], "4 bytes at 0x.* of shared memory, which is 0x400..0x800"),
        (["STS.64 [R1+0x4], R2"], "an address of shared memory that is no multiple of 8"),
        (["STS [RZ], R0"], "4 bytes at 0x0 of shared memory"),
        (["SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR1], RZ"], "there is no barrier at byte 0x0"),
        (["BAR.SYNC 0x1, 0x40"], "barrier 1 of 64 threads"),
        (["ISETP.LT.AND P0, PT, R0, 0x4, PT", "@P0 BRA 0x50", "WARPSYNC.ALL", "NOP", "EXIT"], None),
    ],
)
def test_shared_accesses_that_are_found(lines: list[str], message: str | None) -> None:
    if message is None:  # lanes that ended are no longer waited for
        execute([*SHARED, *lines])
        return
    with pytest.raises(MachineError, match=message):
        execute([*SHARED, *lines])


COPY = [*POINTER, "LEA R1, R0, 0x400, 0x4", "IMAD.WIDE.U32 R2, R0, 0x10, R2", "LDGSTS.E.BYPASS.128 [R1], [R2.64], P0", "LDGDEPBAR"]


def test_asynchronous_copies_land_at_their_wait() -> None:
    lines = [*COPY, "LDGSTS.E [R1+0x200], [R2.64+0x4]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x1", "LDS.128 R4, [R1]", "DEPBAR.LE SB0, 0x0"]
    w = execute([*lines, "LDS R8, [R1+0x200]"], {"P0": FULL - 1}, regions=[region(512)]).warps[0]
    words = np.arange(512).astype(np.uint8).view(np.uint32).reshape(32, 4)
    assert np.array_equal(w.values[4:8].T[1:], words[1:]) and not w.values[4:8, 0].any() and np.array_equal(w.R[8], words[:, 1])


@pytest.mark.parametrize(
    "lines, message",
    [
        (["LDS R4, [R1]", "DEPBAR.LE SB0, 0x0"], "a read of byte 0x400 of shared memory, which a copy under way is writing"),
        (["STS [R1+0x4], R0", "DEPBAR.LE SB0, 0x0"], "a write to shared memory that a copy under way is writing"),
        (["DEPBAR.LE SB0, 0x1"], "ends with asynchronous copies under way"),
    ],
)
def test_copies_that_nobody_waits_for(lines: list[str], message: str) -> None:
    with pytest.raises(MachineError, match=message):
        execute([*COPY, *lines], {"P0": FULL}, regions=[region(512)])


# ---- products

# A barrier for 32 arrivals at 0x600, and one at which 31 of them come.
BARRIER = ["UMOV UR6, 0x600", "UMOV UR4, 0x1fffc0", "UMOV UR5, 0x1fffc0", "SYNCS.EXCH.64 URZ, [UR6], UR4"]


def test_barriers_in_shared_memory_turn_with_their_last_arrival() -> None:
    lines = [*BARRIER, "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR6], RZ", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR6], RZ"]
    assert execute(lines).warps[0].P[0] == FULL
    with pytest.raises(MachineError, match=r"deadlock: warp 0 \(lanes ffffffff\) at 0x40 waits for the barrier at 0x600"):
        execute([*BARRIER, "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR6], RZ"])
    twice = ["SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR6], RZ"] * 2
    half = [line.replace("0x1fffc0", "0x1fffe0") for line in BARRIER]
    with pytest.raises(MachineError, match="32 arrivals at the barrier at 0x600, which waits for 16"):
        execute([*half, *twice])


def test_copies_may_arrive_at_a_barrier_by_themselves() -> None:
    lines = [
        *BARRIER,
        *COPY[:-1],
        "ARRIVES.LDGSTSBAR.64.ARVCNT [UR6]",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR6], RZ",
        "LDS.128 R4, [R1]",
    ]
    words = np.arange(512).astype(np.uint8).view(np.uint32).reshape(32, 4)
    assert np.array_equal(execute(lines, {"P0": FULL}, regions=[region(512)]).warps[0].values[4:8].T, words)
    # The other form announces itself as a byte, and another arrival ends the phase.
    announced = [
        "SYNCS.ARRIVE.TRANS64.RED.A0T1 RZ, [UR6], RZ",
        "ARRIVES.LDGSTSBAR.64.TRANSCNT [UR6]",
        "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR6], RZ",
    ]
    lines = [*BARRIER, *COPY[:-1], *announced, *lines[-2:]]
    assert np.array_equal(execute(lines, {"P0": FULL}, regions=[region(512)]).warps[0].values[4:8].T, words)


def test_bulk_copies_count_for_a_barrier() -> None:
    lines = [
        *BARRIER,
        "IMAD.MOV.U32 R4, RZ, RZ, 0x10",
        "SYNCS.ARRIVE.TRANS64 RZ, [UR6], R4",  # 32 lanes announce 512 bytes
        "UMOV UR8, 0x400",
        "UMOV UR9, 0x600",
        "UMOV UR10, 0x100000",
        "UMOV UR12, 0x20",  # 32 times 16
        "UBLKCP.S.G [UR8], [UR10], UR12",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR6], RZ",
        *SHARED,
        "LDS R5, [R1]",
    ]
    w = execute(lines, regions=[region(512)]).warps[0]
    assert np.array_equal(w.R[5], np.arange(512).astype(np.uint8).view(np.uint32)[::4])
    with pytest.raises(MachineError, match="deadlock"):
        execute([line.replace("0x10", "0x11") if "R4, RZ" in line else line for line in lines], regions=[region(512)])


@pytest.mark.parametrize("name, bits_", [("16832.U8.S8", 8), ("16864.U4.S4", 4)])
def test_products_of_a_warp(name: str, bits_: int) -> None:
    """Against the fragments of the PTX manual: mma.m16n8k32 and k64."""
    generator = np.random.default_rng(1)
    depth = 256 // bits_
    a, b = generator.integers(0, 1 << bits_, (16, depth)), generator.integers(-(1 << bits_ - 1), 1 << bits_ - 1, (8, depth))
    c = generator.integers(-1000, 1000, (16, 8))
    share = 32 // bits_
    given = {}
    for r in range(4):
        rows = a[LANE // 4 + 8 * (r % 2)]
        first = (LANE % 4 + 4 * (r // 2)) * share
        given[f"R{8 + r}"] = sum(rows[LANE, first + i] << bits_ * i for i in range(share)).astype(np.uint32)
        given[f"R{4 + r}"] = c[LANE // 4 + 8 * (r // 2), LANE % 4 * 2 + r % 2].astype(np.int32).view(np.uint32)
    for r in range(2):
        first = (LANE % 4 + 4 * r) * share
        given[f"R{2 + r}"] = sum((b[LANE // 4, first + i] & (1 << bits_) - 1) << bits_ * i for i in range(share)).astype(np.uint32)
    w = execute([f"IMMA.{name} R4, R8.ROW, R2.COL, R4"], given).warps[0]
    want = a @ b.T + c
    for r in range(4):
        assert np.array_equal(w.R[4 + r].view(np.int32), want[LANE // 4 + 8 * (r // 2), LANE % 4 * 2 + r % 2])


def wgmma(changes: dict[int, str] | None = None) -> list[str]:
    """128 threads write B, [8 columns][32 codes], where a product without swizzle reads it; four warps multiply it by 64 rows."""
    lines = [
        "S2R R0, SR_TID.X",
        "LOP3.LUT R1, R0, 0x3f, RZ, 0xc0, !PT",
        "LEA R2, R1, 0x400, 0x2",
        "STS [R2], R1",  # 256 bytes: 8 columns of 16 codes, twice; 128 threads write each word twice
        "FENCE.VIEW.ASYNC.S",  # 4
        "BAR.SYNC 0x0",
        "UMOV UR6, 0x80040",  # 6: start 0x400 / 16; 128 bytes to the next 16 of the depth
        "UMOV UR7, 0x8",
        "WARPGROUP.ARRIVE",  # 8
        "IGMMA.64x8x32.S8.U8 R24, R8, gdesc[UR4], RZ, !UPT, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",  # 10
        "IADD3 R30, R24, R25, RZ",
    ]
    for place, line in (changes or {}).items():
        lines[place] = line
    return lines


A = {f"R{8 + r}": 0x01010101 * (r + 1) for r in range(4)}


def test_products_of_a_warpgroup() -> None:
    block = execute(wgmma(), A, threads=128)
    words = np.arange(64, dtype=np.uint32).view(np.uint8).reshape(2, 8, 16).astype(np.int64)  # [half of the depth][column][code]
    low, high = words[0].sum(1), words[1].sum(1)
    for w in block.warps:
        for r in range(4):  # rows g and g + 8 have A's registers 0 and 1, with 2 and 3 for the second half
            row, column = r // 2, LANE % 4 * 2 + r % 2
            want = (row + 1) * low[column] + (row + 3) * high[column]
            assert w.R[24 + r].tolist() == want.tolist()
    assert (block.core_matrices, block.unaligned) == (2, 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({4: "NOP"}, r"a product reads byte 0x400 of shared memory, which thread \d+ wrote and has not fenced"),
        ({3: "NOP"}, "a product's read of byte 0x400 of shared memory, which nothing has written"),
        ({8: "NOP"}, "a product without WARPGROUP.ARRIVE since registers were touched"),
        ({10: "NOP"}, "register R25 belongs to a product under way"),
        ({10: "IMAD.MOV.U32 R9, RZ, RZ, RZ"}, "register R9 belongs to a product under way"),
        ({10: "STS [R2], R0", 11: "WARPGROUP.DEPBAR.LE gsb0, 0x0"}, "has changed before the wait for it|has not fenced"),
        ({11: "NOP", 10: "WARPGROUP.DEPBAR.LE gsb0, 0x1"}, "ends with products under way"),
        ({7: "UMOV UR7, 0x40000008"}, "a matrix descriptor 0x4000000800080040 with a swizzle"),
        (
            {6: "UMOV UR6, 0x80081"},
            "a product's read of byte 0x.* of shared memory, which nothing has written|outside shared memory",
        ),
        ({5: "NOP", 4: "S2R R3, SR_TID.X", 3: "ISETP.GE.AND P0, PT, R0, 0x20, PT"}, "nothing has written|has not fenced"),
    ],
)
def test_products_that_are_found(changes: dict[int, str], message: str) -> None:
    with pytest.raises(MachineError, match=message):
        execute(wgmma(changes), A, threads=128)


def test_who_has_waited_for_a_write_may_fence_it() -> None:
    """Each warp for its own products: one that does not fence is found."""
    execute(wgmma({4: "BAR.SYNC 0x0", 5: "FENCE.VIEW.ASYNC.S"}), A, threads=128)
    lines = wgmma({4: "BAR.SYNC 0x0", 5: "@!P0 FENCE.VIEW.ASYNC.S"})
    lines.insert(1, "ISETP.GE.AND P0, PT, R0, 0x60, PT")
    with pytest.raises(MachineError, match="warp 3 .*which thread [0-9]+ wrote and has not fenced"):
        execute(lines, A, threads=128)
    with pytest.raises(MachineError, match="has not fenced"):  # before the wait it says nothing of what others wrote
        execute(
            wgmma({3: "@P0 STS [R2], R1", 4: "FENCE.VIEW.ASYNC.S", 5: "BAR.SYNC 0x0", 2: "LEA R2, R0, 0x400, 0x2"})[:3]
            + ["STS [R2], R1", "BAR.SYNC 0x1", "FENCE.VIEW.ASYNC.S", "STS [R2], R1", "BAR.SYNC 0x0", *wgmma()[6:]],
            A,
            threads=128,
        )


def test_warps_of_a_group_must_issue_alike() -> None:
    lines = wgmma({9: "@!P0 IGMMA.64x8x32.S8.U8 R24, R8, gdesc[UR4], RZ, !UPT, gsb0", 7: "UMOV UR7, 0x8"})
    lines.insert(1, "ISETP.GE.AND P0, PT, R0, 0x60, PT")
    with pytest.raises(MachineError, match=r"the warps of warpgroup 0 have issued different numbers of products: \[0, 1\]"):
        execute(lines, A, threads=128)


# ---- the text and the clocks


def test_the_text_of_the_disassembler() -> None:
    text = """
\t\tFunction : _Z4kernelv
        /*0000*/                   LDC R1, c[0x0][0x28] ;                                    /* 0x00000a00ff017b82 */
                                                                                             /* 0x000fe20000000800 */
        /*0010*/              @!P0 IADD3 R4, P1, R2.reuse, -R3, RZ ;                         /* 0x0000000000027919 */
                                                                                             /* 0x004e6e0000002100 */
"""
    (lines,) = parse.kernels(text).values()
    first, second = parse.instructions(lines)
    assert str(first) == "0x0000 LDC R1, c[0x0][0x28]" and first.control == parse.Control(1, 7, 7, 0)
    assert (second.guard, second.opcode, second.operands) == ("!P0", "IADD3", ("R4", "P1", "R2", "-R3", "RZ"))
    assert second.control == parse.Control(stall=7, write=1, read=7, wait=4)


def test_clocks_wait_for_what_the_compiler_says() -> None:
    loads = [parse.instruction("LDG.E R4, [R2.64]", control=parse.Control(2, 0, 7, 0))] * 2
    use = parse.instruction("FADD R4, R4, R4", control=parse.Control(4, 7, 7, 1))
    assert timing.clocks([*loads, use], [0, 1, 2]) == 2 + timing.L2 + 4
    assert timing.clocks([*loads, use], [0, ~1, 2]) == timing.L2 + 4
    assert timing.clocks([*loads, use], [~0, ~1, 2]) == 2 + 2 + 4  # left out: nothing to wait for
    copies = ["LDGSTS.E [R1], [R2.64]", "LDGDEPBAR", "LDGSTS.E [R1], [R2.64]", "LDGDEPBAR"]
    code = [parse.instruction(line) for line in [*copies, "DEPBAR.LE SB0, 0x1", "DEPBAR.LE SB0, 0x0"]]
    assert timing.clocks(code, range(5)) == timing.L2 + 1
    assert timing.clocks(code, range(6)) == 2 + timing.L2 + 1
