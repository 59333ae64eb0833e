"""Numbers for Prometheus, of one ingress process: requests, their times, queues, tokens. Scraped at /metrics."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.admission import Queue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one process; a registry of its own, so that nothing else is told.

    Parameters
    ----------
    queues
        Of the models, by name: read when scraped.
    """

    def __init__(self, queues: Mapping[str, Queue]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("cellray_requests", "Answered requests", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "cellray_request_seconds", "Until the answer", ("route",), buckets=_SECONDS, registry=registry
        )
        self.cells = Counter("cellray_cells", "Cells answered", ("model",), registry=registry)
        self.tokens = Counter("cellray_tokens", "Tokens computed", ("model",), registry=registry)
        self.retries = Counter(
            "cellray_retries", "Requests asked again after a lost replica", ("model",), registry=registry
        )
        self.ready = Gauge(
            "cellray_model_ready", "Whether a replica of the model answers", ("model",), registry=registry
        )
        self.replica = Gauge(
            "cellray_replica_load", "Of the replica last heard of", ("model", "what"), registry=registry
        )
        self.jobs = Gauge("cellray_jobs", "Jobs of the whole server", ("state",), registry=registry)
        waiting = Gauge("cellray_queue_cells", "Cells that wait or are computed", ("model",), registry=registry)
        for name, queue in queues.items():
            waiting.labels(name).set_function(lambda queue=queue: queue.cells)  # type: ignore[misc]

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def computed(self, model: str, cells: int, tokens: int) -> None:
        """Count what a model did."""
        self.cells.labels(model).inc(cells)
        self.tokens.labels(model).inc(tokens)

    def text(self) -> bytes:
        """Return all numbers as Prometheus reads them."""
        return generate_latest(self.registry)
