"""All published metrics: their names and buckets, and one method per event.

Only this module imports prometheus_client. Each ingress replica holds a `Metrics` object with
its own registry. A scrape combines the registries of all replicas into one text, in which each
sample is labelled with its replica.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from serve_app.messages import EmbedResult, ReplicaState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Histogram buckets in seconds, from half a millisecond (tokenizing one text) to two minutes (the
# default deadline). Each bound is two to three times the previous one.
SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
)
INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)

# The limit that caused a rejection. In this order: the limit on the tokens that wait for a model, on
# Ray Serve's queue of calls to the model, on the concurrent requests of an ingress replica, and on
# the memory for the request bodies in an ingress replica.
Reason = Literal["queued_tokens", "serve_queue", "ingress_requests", "body_bytes"]

# The metric families of one ingress replica. They can be pickled.
Snapshot = Sequence[Metric]


class Metrics:
    """The metrics of one ingress replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # The process's memory and CPU time. They are only available on Linux.
        ProcessCollector(namespace="embeddings_ingress", registry=self._registry)
        self._requests = self._counter(
            "requests", "Requests finished.", "model", "route", "status", "key"
        )
        self._request_seconds = self._seconds(
            "request", "Seconds from a request's headers to the end of its response.", "route"
        )
        self._in_flight = self._gauge("requests_in_flight", "Requests in progress.")
        self._errors = self._counter("errors", "Error responses.", "route", "code")
        self._refusals = self._counter("overload_refusals", "Requests rejected with 429.", "reason")
        for reason in get_args(Reason):
            self._refusals.labels(reason)
        self._tokenize = self._seconds("tokenize", "Seconds to tokenize a request.", "model")
        self._queue = self._seconds(
            "queue", "Seconds a request waited, in the queue and in transfer.", "model"
        )
        self._inference = self._seconds(
            "inference", "Inference time, in seconds, of the batch that contained a call.", "model"
        )
        self._batch_inputs = self._histogram(
            "batch_inputs", "Inputs in the batch that contained a call.", INPUTS, "model"
        )
        self._inputs = self._counter("inputs", "Inputs embedded.", "model")
        self._tokens = self._counter("tokens", "Tokens embedded, without padding.", "model")
        self._padded_tokens = self._counter(
            "padded_tokens", "Tokens computed, including padding.", "model"
        )
        self._truncated = self._counter("truncated_inputs", "Inputs truncated.", "model")
        self._retries = self._counter(
            "chunk_retries", "Chunks sent again after their replica died.", "model"
        )
        self._pending_tokens = self._gauge(
            "pending_tokens", "Pending tokens: accepted and not finished.", "model"
        )
        self._queued_tokens = self._gauge(
            "queued_tokens", "Pending tokens that wait in this ingress replica.", "model"
        )
        self._model_info = self._gauge(
            "model_info",
            "Always 1. The labels describe the model.",
            "model",
            "embeds",
            "dtype",
            "dimensions",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"embeddings_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"embeddings_{name}", text, labels, registry=self._registry)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return self._histogram(f"{name}_seconds", text, SECONDS, *labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            f"embeddings_{name}", text, labels, buckets=buckets, registry=self._registry
        )

    def model_served(self, *, model: str, embeds: bool, dtype: str, dimensions: int | None) -> None:
        """Publish a configured model."""
        self._model_info.labels(model, str(embeds).lower(), dtype, dimensions or 0).set(1)
        if embeds:
            self._retries.labels(model)  # starts at 0, so that an alert sees the first increase

    def request_started(self) -> None:
        """Count a request that has started."""
        self._in_flight.inc()

    def request_finished(
        self, *, model: str, route: str, status: int, key: str, seconds: float
    ) -> None:
        """Count a request that got a response, or whose client disconnected (status 499)."""
        self._in_flight.dec()
        self._requests.labels(model, route, status, key).inc()
        self._request_seconds.labels(route).observe(seconds)

    def request_failed(self, *, route: str, code: str) -> None:
        """Count an error response."""
        self._errors.labels(route, code).inc()

    def overloaded(self, *, reason: Reason) -> None:
        """Count a request that was rejected with 429."""
        self._refusals.labels(reason).inc()

    def inputs_tokenized(self, *, model: str, truncated: int, seconds: float) -> None:
        """Count a tokenized request."""
        self._tokenize.labels(model).observe(seconds)
        self._truncated.labels(model).inc(truncated)

    def request_queued(self, *, model: str, seconds: float) -> None:
        """Record how long a request that got its vectors has waited."""
        self._queue.labels(model).observe(seconds)

    def call_finished(self, *, model: str, tokens: int, result: EmbedResult) -> None:
        """Count a call whose result has arrived from a replica."""
        self._inference.labels(model).observe(result.inference_s)
        self._batch_inputs.labels(model).observe(result.batch_inputs)
        self._inputs.labels(model).inc(len(result.vectors))
        self._tokens.labels(model).inc(tokens)
        self._padded_tokens.labels(model).inc(int(result.padded_tokens.sum()))

    def chunks_retried(self, *, model: str, chunks: int) -> None:
        """Count chunks that are sent again because their replica died."""
        self._retries.labels(model).inc(chunks)

    def watch_queue(
        self, *, model: str, pending: Callable[[], int], queued: Callable[[], int]
    ) -> None:
        """Publish the current numbers of pending and of waiting tokens, whenever metrics are read."""
        self._pending_tokens.labels(model).set_function(pending)
        self._queued_tokens.labels(model).set_function(queued)

    def snapshot(self) -> Snapshot:
        """Return all metric families, for a scrape that another ingress replica answers."""
        return list(self._registry.collect())


def exposition(
    ingresses: Mapping[str, Snapshot], models: Mapping[str, Iterable[ReplicaState]]
) -> bytes:
    """Render a scrape with the samples of all replicas, each labelled with its replica.

    Args:
        ingresses: the snapshot of each ingress replica, by replica id.
        models: the states of each model's replicas, by model name.
    """
    families: dict[str, Metric] = {}
    for replica, snapshot in ingresses.items():
        for metric in snapshot:
            family = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type)
            )
            family.samples += [
                sample._replace(labels={**sample.labels, "replica": replica})
                for sample in metric.samples
                if not sample.name.endswith("_created")  # creation times, which nothing reads
            ]
    return generate_latest(_Gathered([*families.values(), *_replica_families(models)]))


def _replica_families(models: Mapping[str, Iterable[ReplicaState]]) -> list[Metric]:
    """Return the metric families of the models' replicas."""
    name, labels = "embeddings_replica", ["model", "replica"]
    calls = GaugeMetricFamily(
        f"{name}_ongoing_calls",
        "Calls in the replica, computed or ready. Each call carries one or more chunks.",
        labels=labels,
    )
    busy = CounterMetricFamily(
        f"{name}_busy_seconds",
        "Total seconds that the model's thread has been busy, loading the model included.",
        labels=labels,
    )
    memory = GaugeMetricFamily(
        f"{name}_memory_bytes", "Resident memory of the replica's process, in bytes.", labels=labels
    )
    for model, states in models.items():
        for state in states:
            values = [model, state.replica]
            calls.add_metric(values, state.ongoing_calls)
            busy.add_metric(values, state.busy_seconds)
            memory.add_metric(values, state.memory_bytes)
    return [calls, busy, memory]


class _Gathered(CollectorRegistry):
    """A registry of metric families that were collected elsewhere, as input for `generate_latest`."""

    def __init__(self, families: Sequence[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
