"""What the service counts and measures, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of Prometheus' text format
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_PICTURES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one service, in a registry of its own, so that a program may have several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("adabm_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "adabm_request_seconds", "Time from a picture's last byte to its result.", buckets=_SECONDS, registry=registry
        )
        self.waited = Histogram(
            "adabm_wait_seconds", "Time from a picture's last byte to its computing.", buckets=_SECONDS, registry=registry
        )
        self.computed = Histogram("adabm_compute_seconds", "Time to compute a batch.", buckets=_SECONDS, registry=registry)
        self.batches = Histogram("adabm_batch_pictures", "Pictures computed together.", buckets=_PICTURES, registry=registry)
        self.under_way = Gauge("adabm_pictures_under_way", "Pictures between being received and being sent.", registry=registry)
        self.pixels = Counter("adabm_pixels", "Pixels of pictures that were computed.", registry=registry)
        self.received = Counter("adabm_received_bytes", "Bytes of bodies.", registry=registry)
        self.sent = Counter("adabm_sent_bytes", "Bytes of pictures sent.", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
