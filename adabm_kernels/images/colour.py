"""Tells which colours the numbers of a picture stand for: by an ICC profile (ICC.1:2001-04), or by the chunks that a PNG may have
in place of one."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

# x and y of white, red, green and blue, by the code points of ITU-T H.273 for primaries.
_D65 = (0.3127, 0.3290)
_PRIMARIES = {
    1: (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06),  # BT.709 and sRGB
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),  # BT.601 of 625 lines
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),  # BT.601 of 525 lines
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_SRGB = _PRIMARIES[1]
_SRGB_TRANSFER, _LINEAR, _GAMMA_22, _GAMMA_28, _VIDEO = 13, 8, 4, 5, (1, 6, 14, 15)  # code points of H.273 for transfer functions
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_KINDS = {b"GRAY": "grey", b"RGB ": "RGB", b"CMYK": "CMYK"}


@dataclass(frozen=True)
class Colour:
    """The chunks of a PNG that say what its colours are, without its profile.

    gamma: the exponent of encoding in gAMA (0.45455 for most pictures). chromaticities: x and y of white, red, green and blue in
    cHRM. srgb: the rendering intent in sRGB. cicp: the four bytes of cICP. Each is None where its chunk is missing. Where chunks
    disagree, cICP has precedence over the profile, the profile over sRGB, and sRGB over the others (ISO/IEC 15948, 4.3).
    """

    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None
    srgb: int | None = None
    cicp: bytes | None = None

    def chunks(self, profile: bool) -> list[tuple[bytes, bytes]]:
        """The names and contents of the chunks except cICP. profile: true where a profile is written, beside which there must be no
        sRGB chunk."""
        found = []
        if self.srgb is not None and not profile:
            found.append((b"sRGB", bytes([self.srgb])))
        if self.gamma is not None:
            found.append((b"gAMA", struct.pack(">I", round(self.gamma * 1e5))))
        if self.chromaticities is not None:
            found.append((b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in self.chromaticities))))
        return found

    @property
    def named(self) -> bool:
        """Returns whether a profile can say the same as these chunks."""
        if self.cicp is None:
            return True
        curves = (_SRGB_TRANSFER, _LINEAR, _GAMMA_22, _GAMMA_28, *_VIDEO)
        return self.cicp[0] in _PRIMARIES and self.cicp[1] in curves

    def profile(self, grey: bool) -> bytes | None:
        """The colour profile that says the same as these chunks; None for sRGB, which needs none, and where no profile can say it
        (`named`)."""
        if self.cicp is not None:
            if not self.named or (self.cicp[0], self.cicp[1]) == (1, _SRGB_TRANSFER):
                return None
            return _profile(_PRIMARIES[self.cicp[0]], _transfer_curve(self.cicp[1]), grey)
        if self.srgb is not None or (self.gamma is None and self.chromaticities is None):
            return None
        usual_gamma = self.gamma is None or abs(self.gamma - 1 / 2.2) < 0.005
        primaries = self.chromaticities
        if primaries is not None and (grey or max(abs(a - b) for a, b in zip(primaries, _SRGB, strict=True)) < 0.001):
            primaries = None
        if primaries is None and usual_gamma:
            return None  # these chunks describe sRGB to a reader that does not know the sRGB chunk
        curve = _transfer_curve(_SRGB_TRANSFER) if self.gamma is None else _gamma_curve(1 / self.gamma)
        return _profile(primaries or _SRGB, curve, grey)


def profile_kind(icc: bytes) -> str | None:
    """ "grey", "RGB", "CMYK" or another colour space's four letters; None for what is no profile."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return None
    return _KINDS.get(icc[16:20]) or icc[16:20].decode("latin-1").strip() or None


def fitting_profile(icc: bytes | None, grey: bool) -> tuple[bytes | None, str | None]:
    """Returns a profile that fits the pixels, and the reason why the given profile is left out, as words that follow "a colour
    profile that"; either may be None. For grey pixels, an RGB profile is replaced by a grey one with its tone curve."""
    if icc is None:
        return None, None
    kind, wanted = profile_kind(icc), "grey" if grey else "RGB"
    if kind == wanted:
        return icc, None
    if kind == "RGB" and (curve := grey_profile(icc)) is not None:
        return curve, None
    return None, "is none" if kind is None else f"is for {kind}, where its pixels are {wanted}"


def grey_profile(icc: bytes) -> bytes | None:
    """A grey profile with the tone curve of an RGB profile; None where that has tables in place of a curve."""
    tags = _tags(icc)
    curve = tags.get(b"gTRC")
    if curve is None or curve[:4] not in (b"curv", b"para"):
        return None
    kept: dict[bytes, bytes] = {name: tags[name] for name in (b"desc", b"cprt", b"wtpt") if name in tags}
    return _assemble({**kept, b"kTRC": curve}, b"GRAY", version=icc[8:12])


def rgb_profile(icc: bytes) -> bytes | None:
    """An RGB profile with the tone curve of a grey profile, for grey pixels that are stored as RGB; None where the grey profile has
    no curve."""
    tags = _tags(icc)
    curve = tags.get(b"kTRC")
    if curve is None or curve[:4] not in (b"curv", b"para"):
        return None
    kept: dict[bytes, bytes] = {name: tags[name] for name in (b"desc", b"cprt") if name in tags}
    return _assemble({**kept, **_rgb_tags(_SRGB, curve)}, b"RGB ", version=icc[8:12])


def _tags(icc: bytes) -> dict[bytes, bytes]:
    count = min(int.from_bytes(icc[128:132], "big"), (len(icc) - 132) // 12)
    entries = (struct.unpack_from(">4sII", icc, 132 + 12 * index) for index in range(count))
    return {name: icc[start : start + size] for name, start, size in entries}


def _profile(primaries: tuple[float, ...], curve: bytes, grey: bool) -> bytes:
    """An ICC profile of version 2 with these primaries and this tone curve."""
    words = b"as the picture said"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(words) + 1) + words + bytes(1 + 4 + 4 + 2 + 1 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
    }
    if grey:
        return _assemble({**tags, b"wtpt": _xyz_tag(_D50), b"kTRC": curve}, b"GRAY")
    return _assemble({**tags, **_rgb_tags(primaries, curve)}, b"RGB ")


def _rgb_tags(primaries: tuple[float, ...], curve: bytes) -> dict[bytes, bytes]:
    columns = _columns(primaries)
    tags = {b"wtpt": _xyz_tag(_D50)}
    tags |= {name: _xyz_tag(columns[:, index]) for index, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}


def _columns(primaries: tuple[float, ...]) -> np.ndarray:
    """A matrix [3, 3] whose columns are the X, Y and Z of the primaries, adapted to D50 by Bradford's transform."""
    xyz = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    white, colours = xyz[:, 0], xyz[:, 1:]
    scaled = colours * np.linalg.solve(colours, white)
    adapted = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    return np.linalg.inv(_BRADFORD) @ adapted @ _BRADFORD @ scaled


def _transfer_curve(transfer: int) -> bytes:
    if transfer == _LINEAR:
        return b"curv" + bytes(8)
    if transfer in (_GAMMA_22, _GAMMA_28):
        return _gamma_curve(2.2 if transfer == _GAMMA_22 else 2.8)
    v = np.linspace(0, 1, 1024)
    if transfer == _SRGB_TRANSFER:
        light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    else:  # the curve of video cameras
        light = np.where(v < 0.081, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45))
    return b"curv" + bytes(4) + struct.pack(">I", len(v)) + np.round(light * 65535).astype(">u2").tobytes()


def _gamma_curve(gamma: float) -> bytes:
    if abs(gamma - 1) < 1e-3:
        return b"curv" + bytes(8)
    return b"curv" + bytes(4) + struct.pack(">IH", 1, min(round(gamma * 256), 65535))


def _xyz_tag(xyz: np.ndarray) -> bytes:
    """Three numbers as fixed-point numbers of 32 bits. A number outside their range, which primaries of no real colour lead to,
    becomes the nearest in it."""
    most = 2**31 - 1
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(min(max(round(float(value) * 65536), -most), most) for value in xyz))


def _assemble(tags: dict[bytes, bytes], space: bytes, version: bytes = b"\2\x10\0\0") -> bytes:
    table, body, places = b"", b"", {}
    start = 132 + 12 * len(tags)
    for name, data in tags.items():
        if data not in places:  # equal curves are stored once
            places[data] = start + len(body)
            body += data + bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, places[data], len(data))
    head = struct.pack(">I4s4s4s4s4s", start + len(body), bytes(4), version, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz_tag(_D50)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body
