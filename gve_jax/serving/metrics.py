"""Metrics of a server in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048)


class Metrics:
    """Counters of one server; not shared with others of the process."""

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gve_requests", "Answered requests", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "gve_request_seconds",
            "Seconds from the headers of a request to its response",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("gve_requests_in_progress", "Accepted requests", registry=registry)
        self.held = Gauge("gve_body_bytes", "Bytes of bodies in memory", registry=registry)
        self.inputs = Counter("gve_inputs", "Embedded inputs", registry=registry)
        self.tokens = Counter("gve_tokens", "Tokens of embedded inputs", registry=registry)
        self.batch_items = Histogram(
            "gve_batch_items",
            "Items that were encoded together",
            buckets=_ITEMS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "gve_batch_seconds", "Seconds to encode a batch", buckets=_SECONDS, registry=registry
        )

    def observe_batch(self, items: int, seconds: float) -> None:
        self.batch_items.observe(items)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
