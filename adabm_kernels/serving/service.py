"""The work behind the service: a bounded queue of pictures, opened in their order by one thread, computed by another in batches of
one size, and encoded by a few more.

Nothing here knows of HTTP but for the statuses with which pictures are refused.
"""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from ..images import Layout, PictureWriter, open_picture
from ..images.formats import EXTENSIONS, sniff
from ..images.openers import TooManyPixels
from ..machine import lacks_memory, usable_cores
from ..upscaling.batch import mean_bits
from ..upscaling.cutting import TooLittleMemory
from ..upscaling.enlarge import Enlarger
from ..upscaling.picture import reading
from .jobs import Job, LetGo, Opened, Order, Result
from .limits import Limits
from .metrics import Metrics
from .problems import Problem

if TYPE_CHECKING:
    from ..upscaling.patchwise import Patchwise

NAME = "the picture"  # what messages call it
FORMATS = tuple(dict.fromkeys(EXTENSIONS.values()))  # those that are written
_AHEAD_PIXELS = 1 << 20  # pictures are decoded ahead until so many pixels wait to be computed
_SPOOL_BYTES = 8 << 20  # larger results wait in a temporary file until they are sent
_MOST_ENCODERS = 4
_START_BYTES = 32  # the number of first bytes of a file that tell its format
_PACE = 0.2  # the weight of the latest picture in the mean time that one takes
# The most low-resolution pixels of pictures of one size that are computed together. On a CPU a pass of more hardly gains anything
# (docs/service.md), and all of a batch wait for its last one.
_BATCH_PIXELS = {"cpu": 1 << 14, "cuda": 1 << 20}

_log = logging.getLogger("adabm_kernels.serving")


class Service:
    """Upscales pictures that come from many clients with one network. `start` it, `submit` orders from any thread, and `close` it.

    Each job that `submit` gives must come back by `let_go`, whatever became of it. The result of a picture is byte for byte what
    `upscale_file` writes with the same settings.
    """

    def __init__(self, network: Patchwise, limits: Limits):
        self.network, self.limits, self.metrics = network, limits, Metrics()
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: deque[Job] = deque()  # in the order in which they came
        self._opened: deque[Job] = deque()
        self._opening = 0  # jobs that were accepted and are not opened yet
        self._ahead = 0  # pixels of opened pictures
        self._under_way = 0
        self._pace = 0.0  # seconds that a picture takes, in the mean of the latest ones
        self._ready = self._stopping = self._closing = False
        self._failed: BaseException | None = None

    # ---- its life

    def start(self) -> None:
        """Starts the threads, and returns when a first small picture was computed, so that the first client does not wait for what
        is set up once. Raises RuntimeError where it cannot be."""
        self._decoder = ThreadPoolExecutor(1, "adabm decode")
        encoders = min(usable_cores(), _MOST_ENCODERS)
        self._encoders = ThreadPoolExecutor(encoders, "adabm encode")
        self._encoding = threading.Semaphore(encoders + 1)  # results that wait to be encoded
        self._ready = self._stopping = self._closing = False
        self._failed = None
        self._computer = threading.Thread(target=self._compute, name="adabm compute", daemon=True)
        self._computer.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failed is not None)
        if self._failed is not None:
            raise RuntimeError(f"the network cannot compute a first picture: {self._failed}") from self._failed

    def stop(self) -> None:
        """From now on no picture is accepted. Those that are under way will be finished."""
        with self._changed:
            self._stopping = True

    def close(self) -> None:
        """Finishes all pictures that were accepted, and ends the threads."""
        with self._changed:
            self._stopping = self._closing = True
            self._changed.notify_all()
        self._decoder.shutdown()
        self._computer.join()
        self._encoders.shutdown()
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether pictures are accepted."""
        return self._ready and not self._stopping

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def idle(self) -> bool:
        """Whether no picture is under way."""
        return not self._under_way

    # ---- jobs

    def check_room(self) -> None:
        """Raises the Problem with which a picture would be refused now."""
        if not self.ready:
            doing = "stopping and accepts no more pictures" if self._stopping else "starting"
            raise Problem(503, f"the service is {doing}", {"Retry-After": "5"})
        if self._under_way >= self.limits.queue:
            raise self.busy()

    def busy(self) -> Problem:
        """The Problem of a picture for which there is no room."""
        seconds = max(math.ceil(min(self._pace * self._under_way, self.limits.timeout)), 1)
        words = "1 picture is" if self.limits.queue == 1 else f"{self.limits.queue} pictures are"
        sentence = f"{words} under way already, as many as --queue allows; ask again in {seconds} s"
        return Problem(429, sentence, {"Retry-After": str(seconds)})

    def submit(self, order: Order) -> Job:
        """Accepts a picture, or raises a Problem where it cannot be."""
        check_start(order.data)
        with self._changed:
            self.check_room()
            job = Job(order)
            job.future.set_running_or_notify_cancel()  # from here on nobody else may cancel it
            self._under_way += 1
            self._opening += 1
            self.metrics.under_way.set(self._under_way)
            self._waiting.append(job)
            self._decoder.submit(self._open_next)
        return job

    def let_go(self, job: Job) -> None:
        """Says that nobody needs the job or its result any more. What is not computed yet will not be."""
        with self._changed:
            job.given_up = True
            if job.future.done() and job.future.exception() is None:
                job.future.result().file.close()
            if job in self._waiting:
                self._waiting.remove(job)
                self._opening -= 1
                self._end(job, LetGo())
            elif job in self._opened:
                self._take(job)
                self._end(job, LetGo())
            self._release(job)

    def _end(self, job: Job, outcome: Result | BaseException) -> None:
        """Hands out what has become of a job."""
        with self._changed:
            job.held = job.order = None
            if isinstance(outcome, BaseException):
                job.future.set_exception(outcome)
            elif job.given_up:
                outcome.file.close()
                job.future.set_exception(LetGo())
            else:
                job.future.set_result(outcome)
            self._release(job)

    def _release(self, job: Job) -> None:
        job.holders -= 1
        if not job.holders:
            self._under_way -= 1
            self.metrics.under_way.set(self._under_way)
        self._changed.notify_all()

    def _fail(self, job: Job, error: BaseException) -> None:
        # The error itself would keep its frames, and with them the picture, until the answer is sent.
        self._end(job, LetGo() if isinstance(error, LetGo) else _problem(job, error))

    # ---- the three stages

    def _open_next(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ahead < _AHEAD_PIXELS)
            if not self._waiting:  # the job of this call was let go of
                return
            job = self._waiting.popleft()
        try:
            job.held = self._open(job)
        except Exception as error:
            self._fail(job, error)
        with self._changed:
            self._opening -= 1
            if job.held is not None and job.given_up:
                self._end(job, LetGo())
            elif job.held is not None:
                self._opened.append(job)
                self._ahead += job.held.pixels
            self._changed.notify_all()

    def _open(self, job: Job) -> Opened:
        """Decodes a picture, and raises all that can be known of it before it is computed."""
        order = job.order
        assert order is not None, "the job has not ended"
        reader = open_picture(order.data, max_pixels=self.limits.max_pixels, name=NAME, strict=order.strict)
        layout = reader.layout if order.metadata == "keep" else replace(reader.layout, metadata=None)
        format = order.format
        if format == "keep":
            format = reader.format if reader.format in FORMATS else "PNG"
        job.stage = "compute"
        enlarger = Enlarger(self.network, order.size, max_pixels=self.limits.max_pixels)
        output = enlarger.check(layout)
        job.stage = "write"
        # typeshed has no common class for this file and for those that a writer takes.
        file = cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL_BYTES))
        writer = PictureWriter(file, format, output, quality=order.quality)
        job.stage = "read"
        rows = reader.read(layout.height)
        job.stage = "compute"
        return Opened(enlarger, layout, rows, writer, file, [*reader.warnings, *writer.warnings])

    def _take(self, job: Job) -> None:
        """Takes a job out of those that are opened."""
        self._opened.remove(job)
        self._ahead -= job.opened.pixels
        self._changed.notify_all()

    def _compute(self) -> None:
        try:
            if self.network.model.running_thresholds is None:  # else it would change what the next picture gets
                rows = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
                Enlarger(self.network).array(rows, Layout(32, 32, 3))
            self._ready = True
        except BaseException as error:  # noqa: BLE001 - it is raised again where the service is started
            self._failed = error
        with self._changed:
            self._changed.notify_all()
        while self._ready and (batch := self._next_batch()):
            self._compute_batch(batch)

    def _next_batch(self) -> list[Job]:
        """The oldest picture, with others of its kind as long as they are small. Waits for one, and returns none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._opened or (self._closing and not self._opening))
            if not self._opened:
                return []
            first = self._opened[0].opened
            most = max(_BATCH_PIXELS[self.network.cutting.device] // first.pixels, 1)
            batch = [job for job in self._opened if job.opened.kind == first.kind][:most]
            for job in batch:
                self._take(job)
            return batch

    def _compute_batch(self, batch: list[Job]) -> None:
        """Computes pictures of one kind, and has them encoded."""
        start = time.monotonic()
        for job in batch:
            self.metrics.waited.observe(start - job.arrived)
        pixels = sum(job.opened.pixels for job in batch)
        alone = batch if len(batch) == 1 else self._compute_together(batch)
        for job in alone:
            self._compute_alone(job)
        seconds = time.monotonic() - start
        self.metrics.computed.observe(seconds)
        self.metrics.batches.observe(len(batch))
        self.metrics.pixels.inc(pixels)
        self._pace += (seconds / len(batch) - self._pace) * (_PACE if self._pace else 1)

    def _compute_together(self, batch: list[Job]) -> list[Job]:
        """Computes pictures of one kind in one batch. Returns those that must be computed alone: all of them where one fails, which
        must not stop the others."""
        start, first = time.monotonic(), batch[0].opened
        try:
            made = first.enlarger.pictures([job.opened.rows for job in batch], first.layout, [job.patches for job in batch])
        except Exception:
            _log.warning("%d pictures could not be computed together, and are computed alone", len(batch), exc_info=True)
            for job in batch:
                job.patches.clear()
            return batch
        seconds = (time.monotonic() - start) / len(batch)
        for job, bands in zip(batch, made, strict=True):
            job.seconds = seconds
            self._write(job, (band for band in bands))
        return []

    def _compute_alone(self, job: Job) -> None:
        opened = job.opened
        try:
            read = reading(opened.rows)
            bands = opened.enlarger.picture(read, opened.layout, record=job.patches, progress=job.progress)
        except Exception as error:
            self._fail(job, error)
            return
        self._write(job, bands)

    def _write(self, job: Job, bands: Generator[np.ndarray, None, None]) -> None:
        """Hands the bands of a picture to its writer, as they are computed, and has the rest encoded beside the next picture."""
        writer, start = job.opened.writer, time.monotonic()
        try:
            writer.__enter__()
        except Exception as error:
            self._fail(job, error)
            return
        try:
            for band in bands:
                if len(band):
                    job.stage = "write"
                    writer.write(band)
                    job.stage = "compute"
        except Exception as error:
            bands.close()  # its threads would otherwise live as long as the error
            try:
                writer.__exit__(type(error), error, error.__traceback__)
            except Exception:
                _log.exception("the part of a result that was written could not be removed")
            self._fail(job, error)
            return
        job.stage = "write"
        job.seconds += time.monotonic() - start
        self._encoding.acquire()
        self._encoders.submit(self._encode, job)

    def _encode(self, job: Job) -> None:
        opened = job.opened
        try:
            opened.writer.__exit__(None, None, None)
            count = opened.file.tell()
            opened.file.seek(0)
        except Exception as error:
            opened.file.close()
            self._fail(job, error)
        else:
            output = opened.writer.layout
            size, bits = (output.width, output.height), mean_bits(job.patches)
            self._end(job, Result(opened.file, count, opened.writer.format, size, bits, job.seconds, opened.warnings))
        finally:
            self._encoding.release()


def check_start(data: bytes) -> None:
    """Raises the Problem of a body that does not begin like a picture."""
    if not data:
        raise Problem(422, "the body must be a picture, and it is empty")
    if sniff(data[:_START_BYTES]) is None:
        try:
            open_picture(data, name="the body")
        except ValueError as error:
            raise Problem(415, str(error)) from error


def _problem(job: Job, error: BaseException) -> Problem:
    """What a client is told about an error of its picture."""
    if lacks_memory(error) or isinstance(error, TooLittleMemory):
        return Problem(503, "there is not enough memory for the picture now", {"Retry-After": "5"})
    if isinstance(error, TooManyPixels):
        return Problem(413, str(error))
    if isinstance(error, ValueError):
        return Problem(422, str(error))
    _log.error("a picture failed (%s)", job.stage, exc_info=error)
    return Problem(500, f"the picture could not be upscaled ({job.stage}): {type(error).__name__}")
