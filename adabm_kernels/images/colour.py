"""What the numbers of a picture mean as colours: ICC profiles (ICC.1:2001-04), and the chunks that a PNG may have in place of
one."""

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
_SRGB_TRANSFER, _LINEAR, _GAMMA_22, _GAMMA_28, _VIDEO = 13, 8, 4, 5, (1, 6, 14, 15)  # the last also by H.273
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_KINDS = {b"GRAY": "grey", b"RGB ": "RGB", b"CMYK": "CMYK"}


@dataclass(frozen=True)
class Colour:
    """The chunks of a PNG that say what its colours are, without its profile.

    gamma: of gAMA, the exponent of encoding (0.45455 for most). chromaticities: of cHRM, x and y of white, red, green and blue.
    srgb: the rendering intent of sRGB. cicp: the four bytes of cICP. Each None where it is not there. Of several that disagree
    cICP goes before the profile, the profile before sRGB, and that before the others (ISO/IEC 15948, 4.3).
    """

    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None
    srgb: int | None = None
    cicp: bytes | None = None

    def chunks(self, profile: bool) -> list[tuple[bytes, bytes]]:
        """Names and contents of the chunks but for cICP. profile: whether one is written, beside which sRGB must not be."""
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
        """Whether a profile can say the same."""
        if self.cicp is None:
            return True
        curves = (_SRGB_TRANSFER, _LINEAR, _GAMMA_22, _GAMMA_28, *_VIDEO)
        return self.cicp[0] in _PRIMARIES and self.cicp[1] in curves

    def profile(self, grey: bool) -> bytes | None:
        """The colour profile that says the same; None for sRGB, which needs none, and where none can say it (`named`)."""
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
            return None  # this is how sRGB is described to a reader that does not know its chunk
        curve = _transfer_curve(_SRGB_TRANSFER) if self.gamma is None else _gamma_curve(1 / self.gamma)
        return _profile(primaries or _SRGB, curve, grey)


def profile_kind(icc: bytes) -> str | None:
    """ "grey", "RGB", "CMYK" or another colour space's four letters; None for what is no profile."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return None
    return _KINDS.get(icc[16:20]) or icc[16:20].decode("latin-1").strip() or None


def fitting_profile(icc: bytes | None, grey: bool) -> tuple[bytes | None, str | None]:
    """The profile if it is for such pixels; of one for RGB its tone curve, if they are grey. And why it is left out, if it is."""
    if icc is None:
        return None, None
    kind, wanted = profile_kind(icc), "grey" if grey else "RGB"
    if kind == wanted:
        return icc, None
    if kind == "RGB" and (curve := grey_profile(icc)) is not None:
        return curve, None
    return None, "is none" if kind is None else f"is for {kind}, where its pixels are {wanted}"


def grey_profile(icc: bytes) -> bytes | None:
    """A grey profile with the tone curve of an RGB one, None where that has no curve but tables."""
    tags = _tags(icc)
    curve = tags.get(b"gTRC")
    if curve is None or curve[:4] not in (b"curv", b"para"):
        return None
    kept: dict[bytes, bytes] = {name: tags[name] for name in (b"desc", b"cprt", b"wtpt") if name in tags}
    return _assemble({**kept, b"kTRC": curve}, b"GRAY", version=icc[8:12])


def rgb_profile(icc: bytes) -> bytes | None:
    """An RGB profile with the tone curve of a grey one, for grey pixels that are stored as RGB; None where it has no curve."""
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
    """[3, 3], the X, Y and Z of the primaries in its columns, adapted to D50 by Bradford's transform."""
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
    """Three numbers of 32 bits, the nearest that these have where primaries that no light has lead beyond."""
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
