"""The server of `adabm serve`: uvicorn with bounds on connections, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from .service import Service

MOST_CONNECTIONS = 512  # further ones are closed at once
HEAD_SECONDS = 10.0  # in which the head of a request must come, and the rest of a body that nobody reads any more
_POLL_SECONDS = 0.05
_BACKLOG = 128


class _Protocol(H11Protocol):
    """Closes connections that keep the server waiting where uvicorn would wait without end: before a request's head is complete,
    and for the rest of a body after the answer was given."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()  # uvicorn's own limit for idle connections holds until the next byte

    def _wait(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    """A server that answers 503 while the last pictures are finished, and only then closes its door. A second signal ends it at
    once."""

    def __init__(self, config: uvicorn.Config, service: Service, listening: str):
        super().__init__(config)
        self._service, self._listening = service, listening
        self.interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self._listening:
            print(self._listening, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise a signal that it remembers once more after the end.
        if self._service.stopping or not self.started:
            self.interrupted = self.should_exit = self.force_exit = True
            return
        self._service.stop()
        self._loop.call_soon_threadsafe(self._begin_end)

    def _begin_end(self) -> None:
        self._ending = self._loop.create_task(self._end())  # a task that nobody holds may vanish

    async def _end(self) -> None:
        while not self._service.idle:
            await asyncio.sleep(_POLL_SECONDS)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. port: 0 for any free one. Raises OSError with a sentence."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=_BACKLOG)
    except OSError as error:
        # What `socket` adds to the system's words is the address once more. Errors of names have words of their own.
        words = error.strerror if isinstance(error, socket.gaierror) or error.errno is None else os.strerror(error.errno)
        raise OSError(f"cannot listen on {_place(host, port)}: {words}") from error
    except ValueError as error:  # names that no resolver is asked for
        raise OSError(f"cannot listen on {_place(host, port)}: it is no address") from error


def serve(app: FastAPI, service: Service, sock: socket.socket, what: str, loudness: str = "warning") -> None:
    """Serves until SIGTERM or SIGINT; returns when all accepted pictures are sent. Raises KeyboardInterrupt after a second signal.

    what: words about the model, for the line that says where the server listens. loudness: the level of uvicorn's log: "error" for
    no such line, "info" for a line for each request.
    """
    host, port = sock.getsockname()[:2]
    log: dict[str, Any] = dict(uvicorn.config.LOGGING_CONFIG)
    own = {"handlers": ["default"], "level": "WARNING", "propagate": False}
    log["loggers"] = {**log["loggers"], "adabm_kernels": own}
    config = uvicorn.Config(app, lifespan="on", ws="none", http=_Protocol, server_header=False, log_level=loudness, log_config=log)
    listening = f"adabm serve: {what} on http://{_place(host, port)}, described at /docs; Ctrl-C stops it"
    server = _Server(config, service, "" if loudness == "error" else listening)
    server.run([sock])
    if server.interrupted:
        raise KeyboardInterrupt


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
