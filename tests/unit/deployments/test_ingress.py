import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from serve_app import errors
from serve_app.api.auth import VARIABLE
from serve_app.checkpoints.metadata import Checkpoint
from serve_app.config.models import ServerConfig
from serve_app.deployments import ingress as module
from serve_app.deployments.ingress import Ingress
from serve_app.errors import (
    InternalError,
    NotAnEmbeddingModelError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from serve_app.messages import (
    EmbedCall,
    EmbedResponse,
    EmbedResult,
    ReplicaRejected,
    ReplicaState,
    RunningReplica,
)
from serve_app.observability.metrics import Metrics, Snapshot
from serve_app.schemas.embeddings import Priority
from tests.support.fakes import (
    ALIAS,
    DIMENSIONS,
    MODEL,
    RANKER,
    RANKER_REASON,
    WORDS,
    FakeHandle,
    counted,
    result_of,
    tiny_checkpoint,
)

pytestmark = pytest.mark.anyio

HERE, PEER = "ingress-1", "ingress-2"
REPLICA = "replica-1"
MARKER = "xyzzy"
STATE = ReplicaState(
    replica=REPLICA,
    ongoing_calls=2,
    busy_seconds=3.0,
    memory_bytes=1000,
    max_batch_tokens=2048,
    max_queued_tokens=200_000,
)


async def answer(call: EmbedCall) -> EmbedResult:
    """Answer a call without failures."""
    return result_of(call)


class FakePeers:
    """A fake of the handle of the ingress deployment itself.

    Attributes:
        answers: each ingress replica's answer to `snapshot`; None for a replica that is late.
    """

    def __init__(self) -> None:
        self.answers: Sequence[tuple[str, Snapshot] | None] = ()

    def broadcast(self, method: str) -> SimpleNamespace:
        """Call `snapshot` on every ingress replica."""
        assert method == "snapshot"
        return SimpleNamespace(_fetch_replica_results_async=self._results)

    async def _results(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(get_async=partial(_return, one)) for one in self.answers]


async def _return(value: Any) -> Any:
    return value


class FakeServe:
    """A fake of the part of `ray.serve` that the ingress uses."""

    def __init__(self, peers: FakePeers) -> None:
        self._peers = {("ingress", "embeddings"): peers}

    def get_replica_context(self) -> SimpleNamespace:
        """Return the context of the replica that runs this code."""
        replica = SimpleNamespace(unique_id=HERE)
        return SimpleNamespace(replica_id=replica, deployment="ingress", app_name="embeddings")

    def get_deployment_handle(self, name: str, app: str, *, _check_exists: bool) -> FakePeers:
        """Return the handle of the ingress, which Ray Serve does not know until it has started."""
        assert not _check_exists
        return self._peers[name, app]


@pytest.fixture
def handle() -> FakeHandle:
    """The handle of the model's deployment, which has one replica."""
    return FakeHandle(answer, RunningReplica(2, STATE))


@pytest.fixture
def peers() -> FakePeers:
    return FakePeers()


@pytest.fixture
def build(
    handle: FakeHandle, peers: FakePeers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ingress]]:
    """A function that builds an ingress without a cluster, with a model that embeds and one that does not."""
    checkpoints = {
        ("embeds", "v2"): tiny_checkpoint(tmp_path),
        ("ranks", None): Checkpoint(directory=tmp_path, embeds=False, reason=RANKER_REASON),
    }

    def read_checkpoint(source: str, *, revision: str | None = None) -> Checkpoint:
        return checkpoints[source, revision]

    monkeypatch.setattr(module, "read_checkpoint", read_checkpoint)
    monkeypatch.setattr(module, "serve", FakeServe(peers))
    monkeypatch.setattr(module, "running_replicas", lambda handle: handle.replicas)
    monkeypatch.setattr(module, "connect", lambda handle: handle.connect())
    monkeypatch.delenv(VARIABLE, raising=False)
    logger = logging.getLogger("ray.serve")
    filters = list(logger.filters)

    def build(
        model: Mapping[str, Any] | None = None, other: FakeHandle | None = None, **settings: Any
    ) -> Ingress:
        embeds = {"name": MODEL, "aliases": [ALIAS], "token_ids": "model"}
        embeds |= {"source": "embeds", "revision": "v2"}
        ranks = {"name": RANKER, "source": "ranks"}
        config = ServerConfig.model_validate(
            {
                "models": [embeds | dict(model or {}), ranks],
                **settings,
            }
        )
        return Ingress(config, {MODEL: other or handle})

    yield build
    logger.filters[:] = filters


Build = Callable[..., Ingress]


@asynccontextmanager
async def client_of(ingress: Ingress) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the application that Ray Serve runs."""
    transport = httpx.ASGITransport(await ingress.__serve_build_asgi_app__())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Run the event loop until the condition is true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # nothing sets an event
            await asyncio.sleep(0)


async def scrape(ingress: Ingress, name: str) -> list[Sample]:
    """Return the samples with this name in a scrape."""
    async with client_of(ingress) as client:
        text = (await client.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return [sample for family in families for sample in family.samples if sample.name == name]


# Calls from Python.


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "a"},
        {"input": ["a", "b", "a b"]},
        {"input": [[10, 11], [11]], "model": ALIAS},
        {"input": "a", "dimensions": 3},
        {"input": "a", "normalize": False},
        {"input": "a", "prompt_name": "query"},
        {"input": "a", "input_type": "query"},
        {"input": "a b test input string 2 a b", "truncate": True},
        {
            "input": "a b test input string 2 a b",
            "truncate": True,
            "truncate_direction": "left",
        },
    ],
)
async def test_a_python_call_is_answered_as_over_http(build: Build, fields: dict[str, Any]) -> None:
    ingress = build()

    called = await ingress.embed(**fields)
    async with client_of(ingress) as client:
        body = (await client.post("/v1/embeddings", json=fields)).json()

    vectors = np.array([entry["embedding"] for entry in body["data"]], np.float32)
    assert called.embeddings.dtype == np.float32
    assert np.array_equal(called.embeddings, vectors)
    assert called.model == body["model"] == MODEL
    assert called.prompt_tokens == body["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"input": []}, errors.InvalidRequestError),
        ({"input": "a", "dimensions": DIMENSIONS + 1}, errors.InvalidRequestError),
        ({"input": "a", "prompt_name": "nothing"}, errors.InvalidRequestError),
        ({"input": "a", "model": "nobody"}, errors.ModelNotFoundError),
        ({"input": "a", "model": RANKER}, errors.NotAnEmbeddingModelError),
        ({"input": ["a", "a b a b a b a b"]}, errors.TokenizationError),
        ({"input": ["a"] * 4}, errors.BatchSizeError),
    ],
)
async def test_a_python_call_fails_with_the_error_of_http(
    build: Build, fields: dict[str, Any], kind: type[ServiceError]
) -> None:
    ingress = build(http={"max_client_batch_size": 3})

    with pytest.raises(kind) as raised:
        await ingress.embed(**fields)
    async with client_of(ingress) as client:
        response = await client.post("/v1/embeddings", json=fields)

    error = raised.value
    sent = response.json()
    assert error.status == response.status_code
    assert (error.code, error.param, error.message) == (
        sent["code"],
        sent["param"],
        sent["message"],
    )


async def test_an_unexpected_error_of_a_call_does_not_leak(
    build: Build, log: pytest.LogCaptureFixture
) -> None:
    async def fail(_call: EmbedCall) -> EmbedResult:
        raise ValueError(MARKER)

    ingress = build(other=FakeHandle(fail))

    with pytest.raises(InternalError) as raised:
        await ingress.embed(MARKER)

    assert raised.value.__suppress_context__
    assert MARKER not in str(raised.value)
    assert MARKER not in "".join(str(vars(record)) for record in log.records)
    assert "internal error: ValueError at " in log.text


async def test_a_python_call_is_counted_and_logged(
    build: Build, log: pytest.LogCaptureFixture
) -> None:
    ingress = build()

    await ingress.embed(["a", "b a"], model=ALIAS)

    (line,) = log.records
    assert line.getMessage().startswith("CALL embed 200 ")
    assert line.getMessage().endswith("ms inputs=2 tokens=7")
    assert vars(line)["model"] == MODEL
    labels = {"model": MODEL, "route": "embed", "status": "200", "key": ""}
    assert counted(ingress._metrics, "embeddings_requests_total", **labels) == 1
    assert counted(ingress._metrics, "embeddings_requests_in_flight") == 0


async def test_a_failed_python_call_is_counted_and_logged(
    build: Build, log: pytest.LogCaptureFixture
) -> None:
    ingress = build()

    with pytest.raises(ServiceError):
        await ingress.embed("a", model=MARKER)

    (line,) = log.records
    assert line.getMessage().startswith("CALL embed 404 ")
    assert line.getMessage().endswith(" code=model_not_found")
    assert MARKER not in str(vars(line))
    failed = {"model": "", "route": "embed", "status": "404", "key": ""}
    code = {"route": "embed", "code": "model_not_found"}
    assert counted(ingress._metrics, "embeddings_requests_total", **failed) == 1
    assert counted(ingress._metrics, "embeddings_errors_total", **code) == 1
    assert counted(ingress._metrics, "embeddings_requests_in_flight") == 0


async def test_every_python_call_has_an_id_of_its_own(
    build: Build, handle: FakeHandle, log: pytest.LogCaptureFixture
) -> None:
    ingress = build()

    for _ in range(2):
        await ingress.embed("a")

    ids = [vars(line)["request_id"] for line in log.records]
    assert ids == [call.request_id for call in handle.calls]
    assert len(set(ids)) == 2


@pytest.mark.parametrize("priority", ["urgent", 5])
async def test_an_unknown_priority_is_an_error_that_names_it(build: Build, priority: Any) -> None:
    ingress = build()

    with pytest.raises(errors.InvalidRequestError) as raised:
        await ingress.embed("a", priority=priority)

    assert (raised.value.code, raised.value.param) == ("invalid_priority", "priority")


async def test_python_calls_and_requests_share_one_limit(build: Build) -> None:
    refused: list[int] = []

    async def call_again(call: EmbedCall) -> EmbedResult:
        with pytest.raises(OverloadedError) as raised:
            await ingress.embed("b")
        async with client_of(ingress) as client:
            response = await client.post("/v1/embeddings", json={"input": "b"})
        refused.extend([raised.value.status, response.status_code])
        return result_of(call)

    ingress = build(other=FakeHandle(call_again), http={"max_concurrent_requests": 1})

    for _ in range(2):  # the slot is free again after the first call
        await ingress.embed("a")

    assert refused == [429] * 4


async def test_only_http_requires_an_api_key(build: Build, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada sk-1\n")
    ingress = build(http={"api_keys_file": str(keys)})

    called = await ingress.embed("a")
    async with client_of(ingress) as client:
        without = await client.post("/v1/embeddings", json={"input": "a"})
        with_key = await client.post(
            "/v1/embeddings", json={"input": "a"}, headers={"api-key": "sk-1"}
        )

    assert len(called.embeddings) == 1
    assert (without.status_code, with_key.status_code) == (401, 200)


# Models.


async def test_a_model_that_does_not_embed_has_no_client(build: Build, handle: FakeHandle) -> None:
    ingress = build({"dtype": "float16"})

    with pytest.raises(NotAnEmbeddingModelError) as raised:
        await ingress.embed("a", model=RANKER)
    async with client_of(ingress) as client:
        ready = await client.get("/ready")
    served = await scrape(ingress, "embeddings_model_info")

    assert raised.value.message == f"{RANKER} is not an embedding model: {RANKER_REASON}."
    assert handle.calls == []
    assert ready.status_code == 200
    names = ("model", "embeds", "dimensions", "dtype")
    assert [tuple(sample.labels[name] for name in names) for sample in served] == [
        (MODEL, "true", str(DIMENSIONS), "float16"),
        (RANKER, "false", "0", "float32"),
    ]


async def test_a_model_has_the_input_limit_and_prompts_of_its_settings(build: Build) -> None:
    ingress = build({"max_input_tokens": 4, "prompts": {"own": "b "}})

    with_prompt = await ingress.embed("a", prompt_name="own")
    with pytest.raises(errors.TokenizationError):
        await ingress.embed("a b a")

    assert with_prompt.prompt_tokens == 4


@pytest.mark.parametrize(
    ("priority", "limit", "passes"),
    [("interactive", 9, True), ("interactive", 8, False), ("bulk", 12, True), ("bulk", 11, False)],
)
async def test_max_queued_tokens_limits_what_waits_by_priority(
    build: Build,
    priority: Priority,
    limit: int,
    passes: bool,  # noqa: FBT001
) -> None:
    """One call is in flight, six tokens wait, and a request has three. Bulk fits below three quarters.

    The replica has not reported its own limit yet.
    """
    released = asyncio.Event()

    async def wait(call: EmbedCall) -> EmbedResult:
        await released.wait()
        return result_of(call)

    handle = FakeHandle(wait, RunningReplica(1, None))
    ingress = build({"max_queued_tokens": limit}, handle, http={"retry_after_s": 9})
    client = ingress._clients[MODEL]
    running = [asyncio.create_task(ingress.embed("a")) for _ in range(3)]
    await until(lambda: client.queued_tokens == 6)

    asked = asyncio.create_task(ingress.embed("b", priority=priority))
    await until(lambda: asked.done() or client.queued_tokens == 9)
    is_refused = asked.done()
    pending = await scrape(ingress, "embeddings_pending_tokens")
    queued = await scrape(ingress, "embeddings_queued_tokens")
    released.set()
    answers = await asyncio.gather(asked, *running, return_exceptions=True)

    assert is_refused is not passes
    assert [sample.value for sample in queued] == [9 if passes else 6]
    assert [sample.value for sample in pending] == [12 if passes else 9]
    assert [type(answer) for answer in answers[1:]] == [EmbedResponse] * 3
    if is_refused:
        assert isinstance(answers[0], OverloadedError)
        # No throughput has been measured yet, so it is `http.retry_after_s`, with jitter.
        assert answers[0].retry_after_s == pytest.approx(9, rel=0.25)


@pytest.mark.parametrize(("bulk_share", "last"), [(0.0, "2"), (0.75, "b")])
async def test_bulk_share_lets_bulk_calls_go_before_others(
    build: Build, bulk_share: float, last: str
) -> None:
    released = asyncio.Event()

    async def wait(call: EmbedCall) -> EmbedResult:
        await released.wait()
        return result_of(call)

    handle = FakeHandle(wait, RunningReplica(1, None))
    ingress = build({"max_batch_tokens": 3, "bulk_share": bulk_share}, handle)
    texts: list[tuple[str, Priority]] = [
        ("a", "interactive"),
        ("2", "bulk"),
        ("b", "interactive"),
        ("b", "interactive"),
    ]
    calls = [asyncio.create_task(ingress.embed(text, priority=kind)) for text, kind in texts]
    await until(lambda: ingress._clients[MODEL].queued_tokens == 9)

    released.set()
    await asyncio.gather(*calls)

    assert WORDS[handle.calls[-1].ids[1]] == last


@pytest.mark.parametrize(("settings", "calls"), [({}, 1), ({"max_batch_tokens": 8}, 4)])
async def test_max_batch_tokens_limits_the_first_calls(
    build: Build, handle: FakeHandle, settings: dict[str, Any], calls: int
) -> None:
    """A chunk has at most half a budget, and each of these inputs has three tokens."""
    handle.replicas = [RunningReplica(2, None)]  # it has not reported its budget yet

    await build(settings).embed(["a", "b", "a", "b"])

    assert len(handle.calls) == calls


async def test_a_model_without_a_replica_is_not_ready(build: Build, handle: FakeHandle) -> None:
    handle.replicas = []
    ingress = build(http={"retry_after_s": 9})

    async with client_of(ingress) as client:
        response = await client.get("/ready")

    assert response.status_code == 503
    assert response.headers["retry-after"] == "9"


async def test_a_model_that_scales_to_zero_is_always_ready(
    build: Build, handle: FakeHandle
) -> None:
    handle.replicas = []
    scaling = {"autoscaling_config": {"min_replicas": 0, "max_replicas": 2}}
    ingress = build({"deployment": scaling})

    async with client_of(ingress) as client:
        response = await client.get("/ready")

    assert response.status_code == 200


async def test_a_call_that_replicas_reject_fails_after_a_while(build: Build) -> None:
    async def reject(_call: EmbedCall) -> ReplicaRejected:
        return ReplicaRejected()

    http = {"replica_wait_timeout_s": 0.01, "retry_after_s": 9}
    ingress = build(other=FakeHandle(reject), http=http)

    async with asyncio.timeout(10):  # the default setting is 30 s
        with pytest.raises(UnavailableError) as raised:
            await ingress.embed("a")

    assert raised.value.retry_after_s == 9


@pytest.mark.parametrize(("token_ids", "loads"), [("model", 0), ("cl100k", 1)])
async def test_cl100k_is_loaded_only_for_a_model_that_reads_it(
    build: Build, monkeypatch: pytest.MonkeyPatch, token_ids: str, loads: int
) -> None:
    """The encoding is a download and takes memory."""
    loaded: list[object] = []
    monkeypatch.setattr(module, "Cl100k", lambda: loaded.append(object()))

    build({"token_ids": token_ids})  # beside a model that does not embed

    assert len(loaded) == loads


# HTTP.


async def test_ray_serve_adds_the_request_id(build: Build) -> None:
    """Two ids in one response would be two headers."""
    async with client_of(build()) as client:
        response = await client.get("/health")

    assert response.status_code == 200
    assert "x-request-id" not in response.headers


async def test_ray_serve_logs_service_errors_without_traceback(build: Build) -> None:
    logger = logging.getLogger("ray.serve")
    before = len(logger.filters)

    build()

    assert len(logger.filters) == before + 1


# Scrapes.


async def test_a_scrape_has_this_replica_before_peers_know_it(build: Build) -> None:
    ingress = build()
    await ingress.embed("a")

    requests = await scrape(ingress, "embeddings_requests_total")

    assert [(s.labels["replica"], s.value) for s in requests] == [(HERE, 1)]


async def test_a_scrape_has_the_metrics_of_all_ingress_replicas(
    build: Build, peers: FakePeers
) -> None:
    other = Metrics()
    other.request_started()
    peers.answers = [None, (PEER, other.snapshot())]

    in_flight = await scrape(build(), "embeddings_requests_in_flight")

    assert {s.labels["replica"]: s.value for s in in_flight} == {PEER: 1, HERE: 1}


async def test_a_scrape_has_this_replica_s_newest_metrics_once(
    build: Build, peers: FakePeers
) -> None:
    ingress = build()
    peers.answers = [await ingress.snapshot()]
    await ingress.embed("a")

    requests = await scrape(ingress, "embeddings_requests_total")

    assert [(s.labels["replica"], s.value) for s in requests] == [(HERE, 1)]


async def test_the_states_of_replicas_arrive_before_the_first_call(
    build: Build, handle: FakeHandle
) -> None:
    async with client_of(build()) as client:
        response = await client.get("/ready")

    assert response.status_code == 200
    assert handle.is_connected


async def test_a_scrape_has_the_states_of_the_model_s_replicas(build: Build) -> None:
    (calls,) = await scrape(build(), "embeddings_replica_ongoing_calls")

    assert calls.labels == {"model": MODEL, "replica": REPLICA}
    assert calls.value == 2


async def test_a_snapshot_names_its_replica(build: Build) -> None:
    ingress = build()
    await ingress.embed("a")

    name, snapshot = await ingress.snapshot()

    requests = [sample for metric in snapshot for sample in metric.samples]
    assert name == HERE
    assert [s.value for s in requests if s.name == "embeddings_requests_total"] == [1]
