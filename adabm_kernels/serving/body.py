"""Receives bodies within bounds of bytes and time, and says which formats a request takes and gives."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from starlette.requests import Request

from ..images.formats import EXTENSIONS
from .limits import Limits
from .problems import Problem

# The media types of what is written, and of what is read besides (IANA's registry of media types, and common other names).
WRITTEN = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp", "TIFF": "image/tiff", "BMP": "image/bmp"}
READ = (*WRITTEN.values(), "image/gif", "image/avif", "image/heic", "image/jxl", "image/jp2", "image/x-portable-anymap")
ANY = "application/octet-stream"
assert set(WRITTEN) == set(EXTENSIONS.values()), "every format that is written has a media type"

_QUALITY = re.compile(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", re.IGNORECASE)


def check_head(headers: Mapping[str, str], limits: Limits) -> None:
    """Raises the Problem of a request whose body would be refused whatever it holds.

    A page that a browser shows can send a body without asking the service first, but not with such a Content-Type (Fetch standard,
    "CORS-safelisted request-header"): without one, or with that of a form, it is refused.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == ANY):
        what = f"'{kind}'" if kind else "none"
        form = "; send the picture itself as the body, not a form" if kind.startswith("multipart/") or "form" in kind else ""
        raise Problem(415, f"Content-Type must be the picture's, such as image/png, or {ANY}, got {what}{form}")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise Problem(415, f"Content-Encoding must be left out, got '{coding}'", {"Accept-Encoding": "identity"})
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.max_body:
        raise Problem(413, f"the body must have at most {limits.max_body} bytes (--max-body), got {length}")


def accepted(accept: str | None) -> str:
    """The format of the result that an Accept header asks for most (RFC 9110, 12.5.1), PNG where it does not care. Raises the
    Problem of a header that allows none."""
    if accept is None or not accept.strip():
        return "PNG"
    wanted: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = part.split(";")
        found = next((match for word in parameters if (match := _QUALITY.fullmatch(word))), None)
        wanted[kind.strip().lower()] = min(float(found[1]), 1.0) if found else 1.0
    weights = {
        format: next((wanted[name] for name in (media_type, "image/*", "*/*") if name in wanted), 0.0)
        for format, media_type in WRITTEN.items()
    }
    best = max(weights, key=lambda format: weights[format])  # of equals the first, which is PNG
    if not weights[best]:
        raise Problem(406, f"Accept must allow one of {', '.join(WRITTEN.values())}, got '{accept}'")
    return best


class Receiver:
    """Receives bodies of requests. limits: how many bytes one may have and how long it may take; all that are being received
    together may have `queue` times as many bytes."""

    def __init__(self, limits: Limits):
        self._limits, self._held = limits, 0

    async def body(self, request: Request, busy: Problem) -> bytes:
        """The body of a request. busy: the Problem where too many bytes are being received. Raises Problems of other kinds, and
        ClientDisconnect."""
        limits, parts, count = self._limits, [], 0
        try:
            async with asyncio.timeout(limits.timeout):
                async for part in request.stream():
                    count += len(part)
                    self._held += len(part)
                    if count > limits.max_body:
                        raise Problem(413, f"the body must have at most {limits.max_body} bytes (--max-body)")
                    if self._held > limits.queue * limits.max_body:
                        raise busy
                    parts.append(part)
        except TimeoutError as error:
            sentence = f"the body must come within {limits.timeout:g} s (--timeout), and {count} bytes came"
            raise Problem(408, sentence, {"Connection": "close"}) from error
        finally:
            self._held -= count
        return b"".join(parts)
