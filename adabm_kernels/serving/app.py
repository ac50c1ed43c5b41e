"""The ASGI application: its paths, what it answers, and how OpenAPI describes it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..machine import version
from . import metrics
from .body import ANY, READ, WRITTEN, Receiver, accepted, check_head
from .jobs import Job, Order, Result
from .parameters import NAMES, Parameters, wrong_parameter
from .problems import MEDIA_TYPE, Problem, described
from .service import Service, check_start

_PIECE_BYTES = 1 << 18  # bytes of a result that are sent at a time
_CLIENT_GONE = 499  # the status that logs and figures have for a client that did not wait (nginx's number)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_DESCRIPTION = (
    "Upscales pictures with a super-resolution network in integers. The result is byte for byte the file that `adabm upscale` "
    "writes with the same settings."
)
_UNPRINTABLE = re.compile(r"[^ -~]")
_JOB = "adabm.job"  # where a request's scope has its job
_PATHS = ("/upscale", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/redoc", "/")


def application(service: Service) -> FastAPI:
    """The application that gives a service to HTTP clients. The service starts and ends with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    app = FastAPIOffline(
        title="adabm serve", version=version("adabm-kernels"), description=_DESCRIPTION, lifespan=lifespan, redirect_slashes=False
    )
    _add_picture(app, service)
    _add_states(app, service)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(_Ending, service=service)
    return app


def _add_picture(app: FastAPI, service: Service) -> None:
    receiver = Receiver(service.limits)

    @app.post(
        "/upscale",
        summary="Upscale a picture",
        response_class=Response,
        responses={
            200: {
                "description": "The picture, upscaled.",
                "content": {kind: _BINARY for kind in WRITTEN.values()},
                "headers": _HEADERS,
            },
            **described(400, 406, 408, 413, 415, 422, 429, 500, 503, 504),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The bytes of a picture file. They, and not the Content-Type, tell its format.",
                "content": {kind: _BINARY for kind in (*READ, ANY)},
            }
        },
    )
    async def upscale(request: Request, asked: Annotated[Parameters, Query()]) -> Response:
        check_head(request.headers, service.limits)
        format = "keep" if asked.format == "keep" else NAMES.get(asked.format or "") or accepted(request.headers.get("accept"))
        size = asked.size()
        if not service.stopping:  # who is refused then should have sent all, as the connection ends soon
            service.check_room()
        try:
            data = await receiver.body(request, service.busy())
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        service.metrics.received.inc(len(data))
        check_start(data)
        job = service.submit(Order(data, format, size, asked.quality, asked.metadata, asked.strict))
        request.scope[_JOB] = job  # `_Ending` lets go of it
        del data
        result = await _finished(job, request, service.limits.timeout)
        if result is None:
            return Response(status_code=_CLIENT_GONE)
        service.metrics.seconds.observe(time.monotonic() - job.arrived)
        return _Picture(result, service)


def _add_states(app: FastAPI, service: Service) -> None:
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/healthz", summary="Whether the process lives", response_class=Response, responses=text)
    async def healthz() -> Response:
        return Response("alive\n", media_type="text/plain")

    @app.get("/readyz", summary="Whether pictures are accepted", response_class=Response, responses={**text, **described(503)})
    async def readyz() -> Response:
        if not service.ready:
            raise Problem(503, f"the service is {'stopping' if service.stopping else 'starting'}")
        return Response("ready\n", media_type="text/plain")

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=text)
    async def figures() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")


# ---- a picture


_HEADERS: dict[str, Any] = {
    "Adabm-Size": {"description": "width and height of the result, such as 768x512", "schema": {"type": "string"}},
    "Adabm-Bits": {"description": "mean bits of the adaptive layers; absent where none was computed", "schema": {"type": "string"}},
    "Adabm-Seconds": {"description": "time that computing and encoding took", "schema": {"type": "string"}},
    "Adabm-Warning": {"description": "what was wrong with the picture, or is lost in the result", "schema": {"type": "string"}},
}


async def _finished(job: Job, request: Request, timeout: float) -> Result | None:
    """The result of a job; None where the client has gone. Raises the Problem of a picture that failed or took too long."""
    done: asyncio.Future[Any] = asyncio.wrap_future(job.future)
    gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({done, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        if gone.done():
            return None
        raise Problem(504, f"the picture was not done within {timeout:g} s (--timeout)")
    finally:
        gone.cancel()
        done.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Picture(Response):
    """Sends a result from its file. Where the client does not take it in time the connection is closed."""

    def __init__(self, result: Result, service: Service):
        self._result, self._service = result, service
        self.status_code, self.background = 200, None
        headers = {
            "content-type": WRITTEN[result.format],
            "content-length": str(result.bytes),
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "adabm-size": "{}x{}".format(*result.size),
            "adabm-seconds": f"{result.seconds:.3f}",
        }
        if result.mean_bits is not None:
            headers["adabm-bits"] = f"{result.mean_bits:.2f}"
        if result.warnings:
            headers["adabm-warning"] = _header("; ".join(result.warnings))
        self.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._service.limits.timeout):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                left = self._result.bytes
                while left:
                    piece = self._result.file.read(_PIECE_BYTES)
                    left -= len(piece)
                    await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
                    self._service.metrics.sent.inc(len(piece))
        except TimeoutError:
            return  # A server closes the connection of an answer that has no end.


def _header(text: str) -> str:
    """The text as a header can hold it: one line of printable ASCII."""
    return _UNPRINTABLE.sub("?", " ".join(text.split()))


class _Ending:
    """Middleware that lets go of a request's job when the request has ended in whatever way, and counts the answer."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            job = scope.get(_JOB)
            if isinstance(job, Job):
                self._service.let_go(job)
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._service.metrics.requests.labels(path, str(status)).inc()


# ---- problems


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return JSONResponse(error.body(), error.status, error.headers, MEDIA_TYPE)


async def _wrong_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _problem(request, wrong_parameter(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        404: f"there is nothing at '{request.url.path[:100]}'; pictures go to /upscale by POST, and /docs describes all",
        405: f"'{request.url.path[:100]}' has no method {request.method[:20]}",
    }
    headers = dict(error.headers or {})
    return await _problem(request, Problem(error.status_code, sentences.get(error.status_code, str(error.detail)), headers))
