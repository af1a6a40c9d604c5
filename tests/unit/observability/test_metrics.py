import pickle
from typing import get_args

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serve_app.messages import ReplicaState
from serve_app.observability.metrics import Metrics, Reason, Snapshot, exposition
from tests.support.fakes import counted, result_of, tokenized

STATE = ReplicaState(
    "r1",
    ongoing_calls=3,
    busy_seconds=1.5,
    memory_bytes=1000,
    max_batch_tokens=10,
    max_queued_tokens=100,
)


def used() -> Metrics:
    """Count one event of each kind."""
    metrics = Metrics()
    metrics.model_served(model="m", embeds=True, dtype="float32", dimensions=8)
    metrics.request_started()
    metrics.request_started()
    metrics.inputs_tokenized(model="m", truncated=1, seconds=0.001)
    metrics.watch_queue(model="m", pending=lambda: 3, queued=lambda: 2)
    metrics.request_queued(model="m", seconds=0.02)
    metrics.call_finished(model="m", tokens=3, result=result_of(tokenized([1, 2], [3])))
    metrics.chunks_retried(model="m", chunks=1)
    metrics.overloaded(reason="queued_tokens")
    metrics.request_failed(route="/v1/embeddings", code="overloaded")
    metrics.request_finished(model="m", route="/v1/embeddings", status=429, key="ada", seconds=0.03)
    return metrics


def parsed(text: bytes) -> dict[str, Metric]:
    """Parse a scrape with prometheus_client's own parser."""
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def test_each_event_is_counted_under_its_labels() -> None:
    metrics = used()

    expected = {
        "embeddings_requests_in_flight": ({}, 1),
        "embeddings_requests_total": (
            {"model": "m", "route": "/v1/embeddings", "status": "429", "key": "ada"}, 1),
        "embeddings_request_seconds_count": ({"route": "/v1/embeddings"}, 1),
        "embeddings_errors_total": ({"route": "/v1/embeddings", "code": "overloaded"}, 1),
        "embeddings_overload_refusals_total": ({"reason": "queued_tokens"}, 1),
        "embeddings_tokenize_seconds_sum": ({"model": "m"}, 0.001),
        "embeddings_truncated_inputs_total": ({"model": "m"}, 1),
        "embeddings_queue_seconds_sum": ({"model": "m"}, 0.02),
        "embeddings_inference_seconds_sum": ({"model": "m"}, 0.002),
        "embeddings_batch_inputs_sum": ({"model": "m"}, 2),
        "embeddings_inputs_total": ({"model": "m"}, 2),
        "embeddings_tokens_total": ({"model": "m"}, 3),
        "embeddings_padded_tokens_total": ({"model": "m"}, 3),
        "embeddings_pending_tokens": ({"model": "m"}, 3),
        "embeddings_queued_tokens": ({"model": "m"}, 2),
        "embeddings_chunk_retries_total": ({"model": "m"}, 1),
        "embeddings_model_info": (
            {"model": "m", "embeds": "true", "dtype": "float32", "dimensions": "8"}, 1),
    }  # fmt: skip
    values = {name: counted(metrics, name, **labels) for name, (labels, _) in expected.items()}

    assert values == {name: value for name, (_, value) in expected.items()}


def test_counters_for_alerts_start_at_0() -> None:
    """A series that appears with its first event shows no increase."""
    metrics = Metrics()
    metrics.model_served(model="m", embeds=True, dtype="float32", dimensions=8)

    families = parsed(exposition({"i1": metrics.snapshot()}, {}))

    retries = families["embeddings_chunk_retries"].samples
    assert [(s.labels["model"], s.value) for s in retries] == [("m", 0)]
    refusals = families["embeddings_overload_refusals"].samples
    assert {s.labels["reason"]: s.value for s in refusals} == dict.fromkeys(get_args(Reason), 0)


def test_two_metrics_objects_count_separately() -> None:
    used()

    assert counted(Metrics(), "embeddings_chunk_retries_total", model="m") == 0


def test_a_scrape_contains_the_series_of_all_replicas() -> None:
    quiet, busy = Metrics().snapshot(), used().snapshot()
    other = ReplicaState(
        "r2",
        ongoing_calls=0,
        busy_seconds=9,
        memory_bytes=2000,
        max_batch_tokens=10,
        max_queued_tokens=100,
    )

    families = parsed(exposition({"i1": busy, "i2": quiet, "i3": busy}, {"m": [STATE, other]}))

    in_flight = families["embeddings_requests_in_flight"].samples
    assert {s.labels["replica"]: s.value for s in in_flight} == {"i1": 1, "i2": 0, "i3": 1}
    requests = families["embeddings_requests"].samples
    assert {s.labels["replica"] for s in requests} == {"i1", "i3"}
    busy_seconds = families["embeddings_replica_busy_seconds"].samples
    assert {(s.labels["model"], s.labels["replica"]): s.value for s in busy_seconds} == {
        ("m", "r1"): 1.5,
        ("m", "r2"): 9,
    }


def test_a_scrape_contains_the_state_of_a_model_replica() -> None:
    families = parsed(exposition({}, {"m": [STATE]}))

    values = {name: [s.value for s in family.samples] for name, family in families.items()}
    assert values == {
        "embeddings_replica_ongoing_calls": [3],
        "embeddings_replica_busy_seconds": [1.5],
        "embeddings_replica_memory_bytes": [1000],
    }


def test_each_family_has_one_type_line_and_a_valid_name() -> None:
    """Prometheus rejects a scrape that describes a family twice."""
    text = exposition({"i1": used().snapshot(), "i2": used().snapshot()}, {"m": [STATE]})

    types = [line.split()[2:] for line in text.decode().splitlines() if line.startswith("# TYPE")]
    assert len({name for name, _ in types}) == len(types)
    assert all(name.startswith("embeddings_") for name, _ in types)
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in types)
    assert "_created" not in text.decode()


def test_a_snapshot_can_be_pickled() -> None:
    snapshot = used().snapshot()

    copy: Snapshot = pickle.loads(pickle.dumps(snapshot))

    assert exposition({"i": copy}, {}) == exposition({"i": snapshot}, {})
