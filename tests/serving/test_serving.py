"""The service as HTTP clients see it, honest ones and hostile ones, in this process and without a socket."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fake_model import FakeModel
from needs import needs
from odd_pictures import GREY, SMOOTH, encode, png

from adabm_kernels import machine, upscale_file
from adabm_kernels.images.formats import EXTENSIONS
from adabm_kernels.models import DEFAULT_MODEL, load_model
from adabm_kernels.serving import Limits, create_app
from adabm_kernels.upscale import prepare
from adabm_kernels.upscaling import cutting
from adabm_kernels.upscaling.cutting import TooLittleMemory

pytestmark = needs("serve")

RGB = np.random.default_rng(5).integers(0, 256, (12, 16, 3), dtype=np.uint8)
RGBA = np.concatenate([RGB, RGB[..., :1]], 2)
PICTURE = encode(RGB, "PNG")
KIND = {"Content-Type": "image/png"}


class Gated(FakeModel):
    """A stand-in for a model that computes only while its gate is open, and counts the pictures of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.counts = threading.Event(), []
        self.gate.set()
        self.fails = lambda x: False

    def forward(self, x: Any, offset: Any = None) -> Any:
        assert self.gate.wait(30)
        self.counts.append(len(x))
        if self.fails(x):
            raise RuntimeError("an accident")
        return super().forward(x, offset)


@contextmanager
def served(model: Any, limits: Limits | None = None, **settings: Any) -> Iterator[Any]:
    """A client of a service of its own, which it has as `service`."""
    from fastapi.testclient import TestClient

    from adabm_kernels.serving.app import application
    from adabm_kernels.serving.service import Service

    service = Service(prepare(model, **settings).network, limits or Limits())
    with TestClient(application(service), raise_server_exceptions=False) as client:
        client.service = service
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client of a service with the stand-in, for tests that change nothing of it."""
    with served(FakeModel(), Limits(max_pixels=4000, max_body=20_000)) as client:
        yield client


def figure(client: Any, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


# ---- pictures


SOURCES = {
    "rgb": PICTURE,
    "rgba": encode(RGBA, "PNG"),
    "grey": encode(GREY[:39, :14], "JPEG"),
    "sixteen": png(rows=SMOOTH.astype(np.uint16)[:10, :11] * 257),
    "described": encode(PIL.Image.fromarray(RGB), "JPEG", exif=PIL.Image.Exif().tobytes(), dpi=(90, 90), quality=90),
}
ASKED = [
    ("rgb", ".png", {}),
    ("rgb", ".jpg", {"quality": 70}),
    ("rgba", ".webp", {"quality": 80}),
    ("rgba", ".png", {"scale": 1.5}),
    ("grey", ".bmp", {"width": 31}),
    ("sixteen", ".tif", {"fit": (30, 30)}),
    ("described", ".jpg", {"metadata": "strip", "height": 20}),
    ("described", ".jpg", {"strict": True}),
]


@pytest.fixture(scope="module")
def network() -> Any:
    model = load_model(DEFAULT_MODEL)
    model.set_threads(1)
    return model


@pytest.mark.parametrize("window", [None, 16], ids=["whole", "in bands"])
def test_the_result_is_the_file_that_upscale_writes(
    tmp_path: Path, network: Any, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for pictures of one size that are computed together, and where a file is written band by band."""
    monkeypatch.setattr(cutting, "JOINED_PIXELS", 0 if window else cutting.JOINED_PIXELS)
    with served(network, tile=window) as client, ThreadPoolExecutor(16) as clients:

        def ask(case: tuple[str, str, dict]) -> Any:
            source, suffix, options = case
            query = {name: "x".join(map(str, value)) if name == "fit" else value for name, value in options.items()}
            return client.post("/upscale", params={"format": suffix[1:], **query}, content=SOURCES[source], headers=KIND)

        answers = list(clients.map(ask, ASKED * 2))
    for (source, suffix, options), answer in zip(ASKED * 2, answers, strict=True):
        assert answer.status_code == 200, answer.text
        (tmp_path / "in").write_bytes(SOURCES[source])
        made = upscale_file(tmp_path / "in", tmp_path / f"out{suffix}", network, tile=window, **options)
        assert answer.content == (tmp_path / f"out{suffix}").read_bytes(), (source, suffix, options)
        assert answer.headers["content-type"] == {"PNG": "image/png"}.get(EXTENSIONS[suffix], answer.headers["content-type"])
        assert answer.headers["adabm-bits"] == f"{made.mean_bits:.2f}"
        assert answer.headers["adabm-size"] == "{}x{}".format(*made.made()[1].size)


def test_pictures_of_one_size_are_computed_together() -> None:
    model = Gated()
    others = [np.random.default_rng(seed).integers(0, 256, RGB.shape, dtype=np.uint8) for seed in range(4)]
    with served(model, smooth="network") as client, ThreadPoolExecutor(8) as clients:
        model.gate.clear()
        waiting = [clients.submit(client.post, "/upscale", content=encode(SMOOTH, "PNG"), headers=KIND)]
        eventually(lambda: figure(client, "adabm_wait_seconds_count") == 1)
        for rows in (*others[:2], SMOOTH, *others[2:]):
            waiting.append(clients.submit(client.post, "/upscale", content=encode(rows, "PNG"), headers=KIND))
        eventually(lambda: len(client.service._opened) == 5)
        model.counts.clear()
        model.gate.set()
        answers = [one.result() for one in waiting]
        assert figure(client, "adabm_batch_pictures_count") == 3 and figure(client, "adabm_pixels_total") == 4 * 192 + 2 * 1920
    assert sorted(model.counts) == [1, 1, 4]
    for rows, answer in zip([SMOOTH, *others[:2], SMOOTH, *others[2:]], answers, strict=True):
        with PIL.Image.open(io.BytesIO(answer.content)) as image:
            assert np.array_equal(np.array(image), rows.repeat(4, 0).repeat(4, 1))


def test_one_that_fails_stops_no_other_of_its_batch() -> None:
    model, bad = Gated(), np.full_like(RGB, 77)
    model.fails = lambda x: bool((x == 77).all((1, 2, 3)).any())
    with served(model, smooth="network", tile=0) as client, ThreadPoolExecutor(4) as clients:
        model.gate.clear()
        first = clients.submit(client.post, "/upscale", content=PICTURE, headers=KIND)
        eventually(lambda: figure(client, "adabm_wait_seconds_count") == 1)
        rest = [clients.submit(client.post, "/upscale", content=encode(rows, "PNG"), headers=KIND) for rows in (RGB, bad, RGB)]
        eventually(lambda: len(client.service._opened) == 3)
        model.gate.set()
        assert [answer.result().status_code for answer in (first, *rest)] == [200, 200, 500, 200]
        said = rest[1].result().json()
        assert said["detail"] == "the picture could not be upscaled (compute): RuntimeError" and "accident" not in str(said)
        assert client.post("/upscale", content=PICTURE, headers=KIND).status_code == 200
        assert figure(client, "adabm_pictures_under_way") == 0
    assert 3 in model.counts


@pytest.mark.parametrize(
    "accept, kind",
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("text/html,image/avif,image/webp,*/*;q=0.8", "image/webp"),
        ("image/png;q=0.5, image/jpeg;q=0.9", "image/jpeg"),
        ("image/*;q=0.2, image/bmp;q=0", "image/png"),
        ("image/tiff", "image/tiff"),
    ],
)
def test_the_format_is_the_one_that_is_accepted(client: Any, accept: str | None, kind: str) -> None:
    headers = {**KIND, **({"Accept": accept} if accept else {})}
    answer = client.post("/upscale", content=PICTURE, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)


def test_what_is_wrong_with_a_picture_that_is_read_nevertheless_is_said(client: Any) -> None:
    cut = encode(SMOOTH, "JPEG")[:-2]  # without its end marker
    answer = client.post("/upscale?format=keep", content=cut, headers=KIND)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert "ends without its end marker" in answer.headers["adabm-warning"]
    answer = client.post("/upscale?strict=true", content=cut, headers=KIND)
    assert answer.status_code == 422 and "ends without its end marker" in answer.json()["detail"]


def test_no_text_of_a_picture_can_break_a_header() -> None:
    from adabm_kernels.serving.app import _header

    assert _header("a\r\nSet-Cookie: b\x00\x1b[2J\u20ac") == "a Set-Cookie: b??[2J?"


# ---- refusals

REFUSED = {
    "no picture": (b"hello", KIND, "", 415, "cannot read 'the body': it is no PNG, JPEG, .* file"),
    "another kind": (b"%PDF-1.7", KIND, "", 415, "it is a PDF document, and read are PNG"),
    "empty": (b"", KIND, "", 422, "the body must be a picture, and it is empty"),
    "cut": (PICTURE[:60], KIND, "", 422, "cannot read 'the picture': .*truncated or damaged"),
    "too many pixels": (encode(np.zeros((64, 64), np.uint8), "PNG"), KIND, "", 413, "has 64x64 = 4096 pixels, more than .* 4000"),
    "a bomb": (png(rows=np.zeros((1, 1), np.uint8)).replace(b"\0\0\0\1" * 2, b"\0\1\0\0" * 2), KIND, "", 413, "has 65536x65536"),
    "too many bytes": (bytes(20_001), KIND, "", 413, r"at most 20000 bytes \(--max-body\), got 20001"),
    "a form": (PICTURE, {"Content-Type": "multipart/form-data; boundary=x"}, "", 415, "send the picture itself .*, not a form"),
    "from a web page": (PICTURE, {"Content-Type": "text/plain"}, "", 415, "Content-Type must be .*, got 'text/plain'"),
    "of no type": (PICTURE, {}, "", 415, "Content-Type must be .*, got none"),
    "compressed": (PICTURE, {**KIND, "Content-Encoding": "gzip"}, "", 415, "Content-Encoding must be left out, got 'gzip'"),
    "not accepted": (PICTURE, {**KIND, "Accept": "text/html"}, "", 406, "Accept must allow one of image/png, .*, got 'text/html'"),
    "a scale": (PICTURE, KIND, "?scale=0.5", 422, "scale must be a number from 1 to 1000, got '0.5'"),
    "no number": (PICTURE, KIND, "?width=1e3", 422, "width must be an integer from 1 to 2147483647, got '1e3'"),
    "nan": (PICTURE, KIND, "?scale=nan", 422, "scale must be a number from 1 to 1000, got 'nan'"),
    "a fit": (PICTURE, KIND, "?fit=10", 422, "fit must be WIDTHxHEIGHT such as 1920x1080, got '10'"),
    "two sizes": (PICTURE, KIND, "?scale=2&width=9", 422, "scale must be left out where width is given, got 2"),
    "a format": (PICTURE, KIND, "?format=gif", 422, "format must be one of keep, png, .*, got 'gif'"),
    "a typing error": (PICTURE, KIND, "?widht=9", 422, r"there is no query parameter 'widht' \(did you mean 'width'\?\)"),
    "a large result": (PICTURE, KIND, "?width=100000", 422, "width must ask for at most 64000 pixels"),
    "transparent": (encode(RGBA, "PNG"), KIND, "?format=jpg", 422, "JPEG has no transparency and the picture has"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_sentence(client: Any, name: str) -> None:
    import re

    body, headers, query, status, sentence = REFUSED[name]
    # A body that comes in parts says no length, and is measured as it comes.
    for content in (body, iter([body[:30], body[30:]])):
        answer = client.post(f"/upscale{query}", content=content, headers=headers)
        assert answer.status_code == status, answer.text
        said = answer.json()
        assert answer.headers["content-type"] == "application/problem+json" and said["status"] == status
        expected = sentence.replace(", got 20001", "") if content is not body else sentence
        assert re.search(expected, said["detail"]) and "\n" not in said["detail"], said
    assert figure(client, "adabm_pictures_under_way") == 0


@pytest.mark.parametrize("method, path, status", [("GET", "/nothing", 404), ("GET", "/upscale", 405), ("DELETE", "/metrics", 405)])
def test_other_paths_and_methods_are_problems_too(client: Any, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == answer.json()["status"] == status and path in answer.json()["detail"]
    assert status != 405 or answer.headers["allow"]


def test_more_pictures_than_the_queue_holds_are_asked_to_come_again() -> None:
    model = Gated()
    with served(model, Limits(queue=2)) as client, ThreadPoolExecutor(2) as clients:
        model.gate.clear()
        accepted = [clients.submit(client.post, "/upscale", content=PICTURE, headers=KIND) for _ in range(2)]
        eventually(lambda: figure(client, "adabm_pictures_under_way") == 2)
        answer = client.post("/upscale", content=PICTURE, headers=KIND)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["detail"].startswith("2 pictures are under way already, as many as --queue allows; ask again in ")
        model.gate.set()
        assert [one.result().status_code for one in accepted] == [200, 200]
        assert client.post("/upscale", content=PICTURE, headers=KIND).status_code == 200
        assert figure(client, 'adabm_requests_total{path="/upscale",status="429"}') == 1


def test_a_picture_that_takes_too_long_is_given_up_and_makes_room() -> None:
    model = Gated()
    with served(model, Limits(queue=2, timeout=1.5)) as client, ThreadPoolExecutor(2) as clients:
        model.gate.clear()
        answers = [clients.submit(client.post, "/upscale", content=PICTURE, headers=KIND)]
        eventually(lambda: figure(client, "adabm_wait_seconds_count") == 1)
        answers.append(clients.submit(client.post, "/upscale", content=PICTURE, headers=KIND))
        for answer in answers:
            assert answer.result().status_code == 504
            assert answer.result().json()["detail"] == "the picture was not done within 1.5 s (--timeout)"
        # The one that is being computed is still there; the other one has left the queue.
        assert figure(client, "adabm_pictures_under_way") == 1
        model.gate.set()
        eventually(lambda: figure(client, "adabm_pictures_under_way") == 0)
        assert client.post("/upscale", content=PICTURE, headers=KIND).status_code == 200


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), TooLittleMemory("max_memory must be")])
def test_want_of_memory_is_said(error: Exception) -> None:
    model = Gated()

    def fails(x: Any) -> bool:
        raise error

    with served(model) as client:
        model.fails = fails
        answer = client.post("/upscale", content=PICTURE, headers=KIND)
        assert answer.status_code == 503 and answer.json()["detail"] == "there is not enough memory for the picture now"
        model.fails = lambda x: False
        assert client.post("/upscale", content=PICTURE, headers=KIND).status_code == 200


def test_a_picture_for_which_windows_cannot_be_small_enough_is_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(FakeModel(), max_memory=1 << 30) as client:
        monkeypatch.setattr(machine, "resident_bytes", lambda: 1 << 31)
        assert client.post("/upscale", content=PICTURE, headers=KIND).status_code == 503


# ---- clients that are slow or go away


def talk(app: Any, receive: Callable, send: Callable, wait: float = 10) -> None:
    """One request for a picture, whose body and answer go through these functions."""
    path = "/upscale"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": b"/upscale",
    }
    scope |= {"query_string": b"", "headers": [(b"content-type", b"image/png")], "scheme": "http", "server": ("test", 80)}

    async def run() -> None:
        async with asyncio.timeout(wait):
            await app(scope, receive, send)

    asyncio.run(run())


class Answer:
    """Collects what is sent."""

    def __init__(self) -> None:
        self.messages: list[dict] = []

    async def __call__(self, message: dict) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]


async def never() -> dict:
    await asyncio.sleep(60)
    return {}


def sending(*messages: dict, then: Callable = never) -> Callable:
    rest = iter(messages)

    async def receive() -> dict:
        found = next(rest, None)
        return await then() if found is None else found

    return receive


WHOLE = {"type": "http.request", "body": PICTURE, "more_body": False}
BEGUN = {"type": "http.request", "body": PICTURE[:20], "more_body": True}
GONE = {"type": "http.disconnect"}


def test_a_body_that_does_not_come_ends_in_time() -> None:
    with served(FakeModel(), Limits(timeout=0.3)) as client:
        answer = Answer()
        talk(client.app, sending(BEGUN), answer)
        assert (
            answer.status == 408 and b"the body must come within 0.3 s (--timeout), and 20 bytes came" in answer.messages[1]["body"]
        )
        talk(client.app, sending(BEGUN, GONE), Answer())
        assert figure(client, "adabm_pictures_under_way") == 0


def test_bodies_that_come_slowly_hold_a_bounded_number_of_bytes_together() -> None:
    """Though none of them is too large, and none is in the queue."""
    limits = Limits(queue=2, max_body=3000, timeout=20)
    part = {"type": "http.request", "body": bytes(2500), "more_body": True}
    with served(FakeModel(), limits) as client, ThreadPoolExecutor(3) as clients:
        done = threading.Event()

        async def until_done() -> dict:
            while not done.is_set():
                await asyncio.sleep(0.01)
            return GONE

        answers = [Answer() for _ in range(3)]
        slow = [clients.submit(talk, client.app, sending(part, then=until_done), answer) for answer in answers]
        eventually(lambda: any(answer.messages for answer in answers))
        assert [answer.status for answer in answers if answer.messages] == [429]
        done.set()
        for one in slow:
            one.result()
        assert client.post("/upscale", content=PICTURE, headers=KIND).status_code == 200


def test_a_picture_whose_client_has_gone_is_not_computed() -> None:
    model = Gated()
    with served(model) as client, ThreadPoolExecutor(1) as clients:
        model.gate.clear()
        first = clients.submit(client.post, "/upscale", content=PICTURE, headers=KIND)
        eventually(lambda: figure(client, "adabm_wait_seconds_count") == 1)
        answer = Answer()
        talk(client.app, sending(WHOLE, GONE), answer)
        assert figure(client, "adabm_pictures_under_way") == 1
        model.gate.set()
        assert first.result().status_code == 200
        assert figure(client, "adabm_batch_pictures_sum") == 1


def test_a_client_that_does_not_take_its_result_makes_room_in_time() -> None:
    class Stuck(Answer):
        async def __call__(self, message: dict) -> None:
            await super().__call__(message)
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)

    with served(FakeModel(), Limits(queue=1, timeout=3)) as client:
        answer = Stuck()
        talk(client.app, sending(WHOLE), answer)
        assert answer.status == 200
        assert client.post("/upscale", content=PICTURE, headers=KIND).status_code == 200
        assert figure(client, "adabm_pictures_under_way") == 0


# ---- life


def test_stopping_finishes_what_was_accepted_and_refuses_the_rest() -> None:

    model, before = Gated(), threading.active_count()
    with served(model) as client, ThreadPoolExecutor(3) as clients:
        service = client.service
        assert client.get("/readyz").text == "ready\n"
        model.gate.clear()
        accepted = [clients.submit(client.post, "/upscale", content=PICTURE, headers=KIND) for _ in range(3)]
        eventually(lambda: figure(client, "adabm_pictures_under_way") == 3)
        service.stop()
        answer = client.post("/upscale", content=PICTURE, headers=KIND)
        assert answer.status_code == 503 and answer.json()["detail"] == "the service is stopping and accepts no more pictures"
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").text == "alive\n"
        assert not service.idle
        model.gate.set()
        assert [one.result().status_code for one in accepted] == [200] * 3
        assert service.idle
    eventually(lambda: threading.active_count() <= before)


def test_a_model_that_cannot_compute_stops_the_start() -> None:
    model = Gated()
    model.fails = lambda x: True
    with pytest.raises(RuntimeError, match="the network cannot compute a first picture: an accident"), served(model):
        pass


def test_the_page_that_describes_it_refers_to_nothing_outside(client: Any) -> None:
    page = client.get("/").text
    assert "swagger-ui" in page and "http://" not in page and "https://" not in page
    described = client.get("/openapi.json").json()["paths"]["/upscale"]["post"]
    assert {parameter["name"] for parameter in described["parameters"]} >= {"format", "scale", "fit", "strict"}
    assert {"200", "413", "429", "504"} <= set(described["responses"])


def test_metrics_are_those_of_one_service(client: Any) -> None:
    before = figure(client, "adabm_pixels_total")
    client.post("/upscale", content=PICTURE, headers=KIND)
    assert figure(client, "adabm_pixels_total") - before == 12 * 16
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    assert figure(client, "adabm_sent_bytes_total") > 0 and figure(client, "process_resident_memory_bytes") > 1 << 20


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("queue", 0, "queue must be at least 1, got 0"),
        ("max_body", 1.5, "max_body must be an integer, got float"),
        ("max_pixels", True, "max_pixels must be an integer, got bool"),
        ("timeout", float("nan"), "timeout must be above 0 and at most 86400 seconds, got nan"),
        ("timeout", "1", "timeout must be a number of seconds, got str"),
    ],
)
def test_limits_have_limits(field: str, value: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Limits(**{field: value})


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, adabm: Any) -> None:
    for name in [name for name in sys.modules if name.startswith("adabm_kernels.serving.")]:
        if name != "adabm_kernels.serving.limits":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r"pip install 'adabm-kernels\[serve\]'"):
        create_app(FakeModel())
    status, out, err = adabm("serve")
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("adabm: error: the service needs packages that are not installed: pip install 'adabm-kernels[serve]'")
