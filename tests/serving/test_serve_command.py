"""`adabm serve` in a process of its own, over sockets of the loopback device: its line, its end, and connections that wait."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ENVIRONMENT, run_process
from needs import needs
from odd_pictures import encode

pytestmark = needs("serve")

PICTURE = encode(np.random.default_rng(5).integers(0, 256, (40, 44, 3), dtype=np.uint8), "PNG")
KIND = {"Content-Type": "image/png"}
# A shorter wait for heads of requests, as a test has no ten seconds.
_PROGRAM = """
import sys
from adabm_kernels.cli import main
from adabm_kernels.serving import server
server.HEAD_SECONDS = 0.5
server.MOST_CONNECTIONS = 12
sys.argv[0] = "adabm"
sys.exit(main())
"""


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """The process and its port. It is killed at the end where it has not ended."""
    command = [sys.executable, "-c", _PROGRAM, "serve", "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            r"adabm serve: edsr_x4_w4a4 \(.+\) on http://127\.0\.0\.1:(\d+), described at /docs; Ctrl-C stops it\n", line
        )
        assert found, (line, process.communicate(timeout=60))
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a process that several tests use, which Ctrl-C then ends."""
    with serving("-v") as (process, port):
        yield port
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.communicate()[1]


def post(port: int, connection: http.client.HTTPConnection | None = None) -> int:
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/upscale", PICTURE, KIND)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_nothing_is_lost_at_the_end() -> None:
    """Each request of eight clients is answered, by its picture or by 503; a client stops at the first 503, or when nobody listens
    any more."""
    statuses: list[int] = []
    errors: list[BaseException] = []

    def client(port: int) -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            try:
                statuses.append(post(port, connection))
            except Exception as error:
                errors.append(error)
                return
            if statuses[-1] != 200:
                return

    with serving() as (process, port):
        clients = [threading.Thread(target=client, args=(port,)) for _ in range(8)]
        for one in clients:
            one.start()
        while len(statuses) < 12:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for one in clients:
            one.join()
        assert process.wait(timeout=30) == 0
        out, err = process.communicate()
    assert not errors and set(statuses) <= {200, 503}
    assert statuses.count(200) >= 12
    assert (out, err) == ("", "")


def test_connections_that_wait_are_closed_and_others_served(port: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
    for one in slow:
        one.sendall(b"POST /upscale HTTP/1.1\r\nHost: a\r\nContent-Ty")
    assert post(port) == 200
    more = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
    start = time.monotonic()
    for one in [*more, *slow]:
        one.settimeout(10)
        with suppress(ConnectionResetError):
            assert one.recv(100) == b""
    assert time.monotonic() - start < 5


def test_who_sends_on_after_a_refusal_is_cut_off(port: int) -> None:
    head = b"POST /upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\nContent-Type: image/png\r\n\r\n"
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as refused:
        refused.sendall(head)
        assert refused.recv(1000).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(OSError):
            while time.monotonic() - start < 10:
                refused.sendall(bytes(100))
                time.sleep(0.05)
    assert post(port) == 200


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"A" * 100_000], ids=["TLS", "endless"])
def test_what_is_no_http_is_refused(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(data + b"\r\n\r\n")
        assert one.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert post(port) == 200


@pytest.mark.parametrize(
    "options, status, message",
    [
        (("--port", "70000"), 2, "argument --port: must be an integer from 0 to 65535, got '70000'"),
        (("--timeout", "0"), 2, "argument --timeout: must be a number above 0 and at most 86400, got '0'"),
        (("--queue", "0"), 2, "argument --queue: must be an integer of at least 1, got '0'"),
        (("--max-body", "much"), 2, "argument --max-body: must be a size such as 1.5G or 800M, got 'much'"),
        (("--host", ""), 2, "argument --host: must be an address such as 127.0.0.1, got ''"),
        (("--model", "nowhere"), 2, "model must be a built-in model"),
        (("--host", "a" * 100), 1, f"cannot listen on {'a' * 100}:8000: it is no address"),
        (("--host", "no.such.host.invalid"), 1, "cannot listen on no.such.host.invalid:8000: "),
    ],
)
def test_options_that_cannot_be_are_one_sentence(adabm: Any, options: tuple, status: int, message: str) -> None:
    found, out, err = adabm("serve", "--threads", 1, *options)
    assert (found, out) == (status, "") and err.startswith(f"adabm: error: {message}") and err.count("\n") == 1


def test_a_port_that_is_taken_is_said(adabm: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = adabm("serve", "--threads", 1, "--port", port)
    assert (status, out) == (1, "") and err == f"adabm: error: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_importing_it_loads_neither_torch_nor_the_extra(tmp_path: Path) -> None:
    code = "import sys, adabm_kernels.serving; print(sorted({'torch', 'numpy', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    assert run_process(code=code, cwd=tmp_path).stdout == "[]\n"
