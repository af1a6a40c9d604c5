"""Every published number: its name, its buckets, and one verb per event.

The only importer of prometheus_client. An object with its own registry, not a global: each ingress replica holds one,
and a scrape gathers those of all replicas into one text, each sample labelled with the replica it comes from.
"""

from collections.abc import Iterable, Mapping, Sequence
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

# Half a millisecond (the tokenizer on one text) to two minutes (the default deadline), in steps of about 2.5.
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

# What a request finds no room in: the tokens that wait for a model, Ray Serve's queue of calls to it, the requests that
# an ingress replica works on, the memory for their bodies.
Reason = Literal["pending_tokens", "serve_queue", "ingress_requests", "body_bytes"]

# What one replica hands over at a scrape: metric families in prometheus_client's own terms, all picklable.
Snapshot = Sequence[Metric]


class Metrics:
    """What one ingress replica counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(
            namespace="embeddings_ingress", registry=self._registry
        )  # memory, CPU; Linux only
        self._requests = self._counter(
            "requests", "Requests answered.", "model", "route", "status", "key"
        )
        self._request_seconds = self._seconds(
            "request", "A request, from its headers to its answer.", "route"
        )
        self._in_flight = self._gauge("requests_in_flight", "Requests being worked on.")
        self._errors = self._counter("errors", "Requests answered with an error.", "route", "code")
        self._refusals = self._counter("overload_refusals", "Requests refused with 429.", "reason")
        for reason in get_args(Reason):
            self._refusals.labels(reason)
        self._tokenize = self._seconds("tokenize", "Tokenizing a request.", "model")
        self._queue = self._seconds("queue", "What a chunk waited for the model.", "model")
        self._inference = self._seconds("inference", "The batch that held a chunk.", "model")
        self._batch_inputs = self._histogram(
            "batch_inputs", "Inputs in the batch that held a chunk.", INPUTS, "model"
        )
        self._inputs = self._counter("inputs", "Inputs embedded.", "model")
        self._tokens = self._counter(
            "tokens", "Tokens that the model read, without padding.", "model"
        )
        self._padded_tokens = self._counter(
            "padded_tokens", "Tokens computed, padding included.", "model"
        )
        self._truncated = self._counter("truncated_inputs", "Inputs that were cut.", "model")
        self._retries = self._counter(
            "chunk_retries", "Chunks sent again after their replica died.", "model"
        )
        self._pending_tokens = self._gauge(
            "pending_tokens", "Tokens accepted and not answered yet.", "model"
        )
        self._model_info = self._gauge(
            "model_info", "1 for each model.", "model", "embeds", "dtype", "dimensions"
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
        """A model is part of the configuration."""
        self._model_info.labels(model, str(embeds).lower(), dtype, dimensions or 0).set(1)
        if embeds:
            self._retries.labels(model)  # there with 0, so that an alarm sees the first one

    def request_started(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def request_finished(
        self, *, model: str, route: str, status: int, key: str, seconds: float
    ) -> None:
        """A request has its answer, or its client has gone (status 499)."""
        self._in_flight.dec()
        self._requests.labels(model, route, status, key).inc()
        self._request_seconds.labels(route).observe(seconds)

    def request_failed(self, *, route: str, code: str) -> None:
        """A request was answered with an error."""
        self._errors.labels(route, code).inc()

    def overloaded(self, *, reason: Reason) -> None:
        """A request was refused for want of room."""
        self._refusals.labels(reason).inc()

    def inputs_tokenized(self, *, model: str, truncated: int, seconds: float) -> None:
        """A request's inputs were turned into ids."""
        self._tokenize.labels(model).observe(seconds)
        self._truncated.labels(model).inc(truncated)

    def chunk_finished(
        self, *, model: str, tokens: int, result: EmbedResult, queue_s: float
    ) -> None:
        """A replica has answered a chunk."""
        self._queue.labels(model).observe(queue_s)
        self._inference.labels(model).observe(result.inference_s)
        self._batch_inputs.labels(model).observe(result.batch_inputs)
        self._inputs.labels(model).inc(len(result.vectors))
        self._tokens.labels(model).inc(tokens)
        self._padded_tokens.labels(model).inc(result.padded_tokens)

    def chunk_retried(self, *, model: str) -> None:
        """A chunk goes to another replica because its own died."""
        self._retries.labels(model).inc()

    def pending_changed(self, *, model: str, tokens: int) -> None:
        """So many tokens are accepted and not answered yet."""
        self._pending_tokens.labels(model).set(tokens)

    def snapshot(self) -> Snapshot:
        """Return all that was counted, for a scrape that another ingress replica answers."""
        return list(self._registry.collect())


def exposition(
    ingresses: Mapping[str, Snapshot], models: Mapping[str, Iterable[ReplicaState]]
) -> bytes:
    """Write one scrape: every series of every replica, labelled with the replica it comes from.

    Args:
        ingresses: the snapshot of each ingress replica, by replica id.
        models: the state of each model's replicas, by model.
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
                if not sample.name.endswith("_created")  # a time of birth that nothing reads
            ]
    return generate_latest(_Gathered([*families.values(), *_replica_families(models)]))


def _replica_families(models: Mapping[str, Iterable[ReplicaState]]) -> list[Metric]:
    """Describe what only a model's replicas know."""
    name, labels = "embeddings_replica", ["model", "replica"]
    chunks = GaugeMetricFamily(
        f"{name}_queued_chunks", "Chunks that wait for the model.", labels=labels
    )
    tokens = GaugeMetricFamily(
        f"{name}_queued_tokens", "Tokens that wait for the model.", labels=labels
    )
    busy = CounterMetricFamily(f"{name}_busy_seconds", "Seconds the model computed.", labels=labels)
    memory = GaugeMetricFamily(f"{name}_memory_bytes", "Resident memory.", labels=labels)
    for model, states in models.items():
        for state in states:
            at = [model, state.replica]
            chunks.add_metric(at, state.queued_chunks)
            tokens.add_metric(at, state.queued_tokens)
            busy.add_metric(at, state.busy_seconds)
            memory.add_metric(at, state.memory_bytes)
    return [chunks, tokens, busy, memory]


class _Gathered(CollectorRegistry):
    """Families that were collected elsewhere, for prometheus_client's own writer."""

    def __init__(self, families: Sequence[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
