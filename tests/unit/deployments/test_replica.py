import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.config.models import ModelConfig
from serve_app.deployments import replica as module
from serve_app.deployments.autoscaling import BUSY, WAITING_S
from serve_app.deployments.load_report import LoadReport
from serve_app.deployments.model_thread import ModelThreadError
from serve_app.deployments.replica import EmbeddingReplica
from serve_app.dispatch.chunks import EmbedChunk, pack
from serve_app.encoder import EncoderBrokenError
from serve_app.errors import ModelLoadError, UnavailableError
from serve_app.messages import EmbedCall, EmbedResult, Failure, ReplicaRejected, ReplicaState
from tests.support.clock import Clock
from tests.support.fakes import tokenized, vectors_of

pytestmark = pytest.mark.anyio

NAME = "replica-1"


class FakeEncoder:
    """A fake encoder whose vectors are those of `vectors_of`.

    Attributes:
        batches: the inputs of every batch.
        budgets: the token budget of every batch.
        threads: the names of the threads that loaded the model and encoded a batch.
        failures: the inputs reported without a vector.
        error: raised instead of returning vectors.
        began: set when a batch begins.
        may_end: a batch waits for this event.
        clock: moves forward by `batch_s` in every batch.
    """

    device = "cpu"

    def __init__(self, clock: Clock, *, batch_s: float = 0.0) -> None:
        self.batches: list[list[EmbedCall]] = []
        self.budgets: list[int | None] = []
        self.threads: list[str] = []
        self.failures: tuple[Failure, ...] = ()
        self.error: Exception | None = None
        self.began, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()
        self.clock, self.batch_s = clock, batch_s

    def encode(
        self, inputs: Sequence[EmbedCall], *, max_batch_tokens: int | None = None
    ) -> EmbedResult:
        """Return the vectors of all inputs."""
        self.batches.append(list(inputs))
        self.budgets.append(max_batch_tokens)
        self.threads.append(threading.current_thread().name)
        self.began.set()
        assert self.may_end.wait(30)
        self.clock.now += self.batch_s
        if self.error is not None:
            raise self.error
        lengths = np.concatenate([call.lengths for call in inputs]).astype(np.int64)
        vectors = np.concatenate([vectors_of(call) for call in inputs])
        return EmbedResult(vectors, self.failures, lengths + 1, self.batch_s, len(vectors))

    async def begins(self) -> None:
        """Wait until a batch begins, and hold it until `may_end` is set."""
        assert await asyncio.to_thread(self.began.wait, 30)


class Replica(EmbeddingReplica):
    """The product's replica with a fake encoder."""

    encoder: FakeEncoder
    load_s = 0.0

    def _load(self) -> FakeEncoder:  # type: ignore[override]
        self.encoder.threads.append(threading.current_thread().name)
        self.encoder.clock.now += self.load_s
        return self.encoder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the model's thread and of the load report."""
    clock = Clock()
    thread = "serve_app.deployments.model_thread.time"
    monkeypatch.setattr(thread, SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(module, "LoadReport", partial(LoadReport, clock=clock))
    return clock


@pytest.fixture
def encoder(clock: Clock) -> Iterator[FakeEncoder]:
    encoder = FakeEncoder(clock)
    yield encoder
    encoder.may_end.set()  # a test that failed leaves no thread behind


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The exits that the replica asked for. The test process must survive them."""
    exits: list[str] = []
    monkeypatch.setattr(module, "_EXIT_DELAY_S", 0.0)
    monkeypatch.setattr(module, "_exit", lambda: exits.append("exit"))
    return exits


@pytest.fixture
def build(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that builds a replica without a cluster. Its keywords are the model's settings."""
    context = SimpleNamespace(
        replica_id=SimpleNamespace(unique_id=NAME),
        _deployment_config=SimpleNamespace(max_ongoing_requests=512),
    )
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    # Ray Serve keeps one queue of batches per process, which belongs to the first test's event loop.
    batching = EmbeddingReplica._encode.set_max_batch_size.__self__
    monkeypatch.setattr(batching, "_queue", None)
    monkeypatch.setattr(batching, "max_batch_size", batching.max_batch_size)
    monkeypatch.setattr(Replica, "encoder", encoder, raising=False)
    built: list[Replica] = []

    def build(**settings: Any) -> Replica:
        model = {"name": "acme/tiny", "source": "-", **settings}
        built.append(Replica(ModelConfig.model_validate(model)))
        return built[-1]

    yield build
    for one in built:
        one._thread.stop()
    if batching._queue is not None:  # otherwise the queue's destructor opens an event loop
        batching._queue._handle_batch_task = None


Build = Callable[..., Replica]


def call_of(
    *inputs: Sequence[int], is_retry: bool = False, caller: str = "one", waiting_tokens: int = 0
) -> EmbedCall:
    """Pack lists of token ids into a call."""
    chunk = EmbedChunk(tokenized(*inputs), "an-id")
    return pack([chunk], is_retry=is_retry, caller=caller, waiting_tokens=waiting_tokens)


def accepted(answer: EmbedResult | ReplicaRejected) -> EmbedResult:
    """Return the result of a call that the replica must not reject."""
    assert not isinstance(answer, ReplicaRejected)
    return answer


async def state_of(replica: Replica) -> ReplicaState | None:
    """Return the state that Ray Serve gets from a replica."""
    stats = await replica.record_routing_stats()
    return ReplicaState(**stats) if stats else None


async def until(condition: Callable[[], bool]) -> None:
    """Run the event loop until the condition is true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # nothing sets an event
            await asyncio.sleep(0)


async def die(dying: Replica) -> None:
    """End the model's thread."""
    dying._thread.stop()
    await until(lambda: not dying._thread._thread.is_alive())


# Batches.


async def test_a_batch_is_cut_back_to_its_calls(build: Build, encoder: FakeEncoder) -> None:
    one, two = call_of([1], [2, 3]), call_of([4, 5, 6])
    encoder.failures = (Failure(1, "inference_failed"), Failure(2, "non_finite_embedding"))
    encoder.batch_s = 1.5
    replica = build(deployment={"max_ongoing_requests": 8})
    replica.reconfigure({})
    encoder.may_end.clear()
    first = asyncio.create_task(replica.embed(call_of([0], [0], [0])))
    await encoder.begins()
    calls = [asyncio.create_task(replica.embed(call)) for call in (one, two)]
    await until(lambda: replica._ongoing_calls == 3)

    encoder.may_end.set()
    await first
    answers = [accepted(await call) for call in calls]

    assert [len(batch) for batch in encoder.batches] == [1, 2]
    for call, answer in zip([one, two], answers, strict=True):
        assert np.array_equal(answer.vectors, vectors_of(call))
        assert answer.padded_tokens.tolist() == (call.lengths + 1).tolist()
        assert (answer.batch_inputs, answer.inference_s) == (3, 1.5)
    assert [answer.failures for answer in answers] == [
        (Failure(1, "inference_failed"),),
        (Failure(0, "non_finite_embedding"),),
    ]


async def test_one_thread_loads_the_model_and_encodes(build: Build, encoder: FakeEncoder) -> None:
    """OpenMP and CUDA keep state per thread."""
    await build().embed(call_of([1]))

    assert encoder.threads == ["model", "model"]


async def test_an_error_of_one_batch_does_not_end_the_replica(
    build: Build, encoder: FakeEncoder, exits: list[str]
) -> None:
    replica = build()
    encoder.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await replica.embed(call_of([1]))
    encoder.error = None

    answer = accepted(await replica.embed(call_of([1])))

    assert len(answer.vectors) == 1
    assert exits == []


# Loading.


def test_a_model_that_cannot_be_loaded_fails_the_replica(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Replica) -> FakeEncoder:
        raise ModelLoadError("no such directory")

    monkeypatch.setattr(Replica, "_load", fail)

    with pytest.raises(ModelLoadError, match="no such directory"):
        build()


@pytest.mark.parametrize(
    ("granted", "setting", "expected"),
    [
        ({"CPU": 3.0}, None, 3),
        ({"CPU": 0.5}, None, os.cpu_count()),
        ({}, None, os.cpu_count()),
        ({"CPU": 3.0}, 7, 7),
    ],
)
def test_a_replica_computes_with_the_threads_it_was_granted(
    build: Build,
    encoder: FakeEncoder,
    monkeypatch: pytest.MonkeyPatch,
    granted: dict[str, float],
    setting: int | None,
    expected: int,
) -> None:
    """A fraction of a CPU lets replicas share a machine. It does not limit their threads."""
    loads: list[dict[str, Any]] = []
    ray = SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(get_assigned_resources=lambda: granted)
    )

    def load(source: str, **options: Any) -> FakeEncoder:
        loads.append({"source": source, **options})
        return encoder

    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(module, "load_encoder", load)
    monkeypatch.setattr(Replica, "_load", EmbeddingReplica._load)

    build(
        source="someone/model",
        revision="v2",
        dtype="bfloat16",
        padding="always",
        threads=setting,
    )

    (options,) = loads
    assert options == {
        "source": "someone/model",
        "revision": "v2",
        "trust_remote_code": False,
        "device": "auto",
        "engine": "auto",
        "dtype": "bfloat16",
        "padding": "always",
        "threads": expected,
        "max_batch_tokens": None,
    }


# Retries.


async def test_a_second_retry_is_rejected_while_one_is_inside(
    build: Build, encoder: FakeEncoder
) -> None:
    """If the process died with both retries, either of them could be the cause."""
    replica = build()
    encoder.may_end.clear()
    first = asyncio.create_task(replica.embed(call_of([1], is_retry=True)))
    await encoder.begins()

    second = await replica.embed(call_of([2], is_retry=True))
    encoder.may_end.set()
    answer = await first
    third = await replica.embed(call_of([4], is_retry=True))

    assert second == ReplicaRejected()
    assert len(accepted(answer).vectors) == len(accepted(third).vectors) == 1
    assert [len(batch) for batch in encoder.batches] == [1, 1]


async def test_other_calls_are_accepted_beside_a_retry(build: Build, encoder: FakeEncoder) -> None:
    replica = build()
    encoder.may_end.clear()
    retry = asyncio.create_task(replica.embed(call_of([1], is_retry=True)))
    await encoder.begins()
    other = asyncio.create_task(replica.embed(call_of([2])))
    await until(lambda: replica._ongoing_calls == 2)

    encoder.may_end.set()

    assert [len(accepted(await call).vectors) for call in (retry, other)] == [1, 1]


async def test_a_cancelled_retry_leaves_room_for_another_when_its_batch_has_ended(
    build: Build, encoder: FakeEncoder
) -> None:
    """Until then, it may still end the process, and another retry would be taken for the cause."""
    replica = build()
    encoder.may_end.clear()
    cancelled = asyncio.create_task(replica.embed(call_of([1], is_retry=True)))
    await encoder.begins()

    cancelled.cancel()
    await asyncio.wait([cancelled])
    before = await replica.embed(call_of([2], is_retry=True))
    encoder.may_end.set()
    await until(lambda: not replica._has_retry)
    after = await replica.embed(call_of([2], is_retry=True))

    assert cancelled.cancelled()
    assert before == ReplicaRejected()
    assert len(accepted(after).vectors) == 1


# The end of a replica.


async def test_a_broken_encoder_ends_the_replica(
    build: Build, encoder: FakeEncoder, exits: list[str], log: pytest.LogCaptureFixture
) -> None:
    replica = build()
    encoder.error = EncoderBrokenError("the device is broken")

    with pytest.raises(UnavailableError) as raised:
        await replica.embed(call_of([1]))
    before_the_reply = list(exits)
    await until(lambda: bool(exits))

    assert raised.value.code == "model_unavailable"
    assert before_the_reply == []
    (line,) = log.records
    assert line.getMessage() == "the model is broken, this replica exits: EncoderBrokenError"
    assert vars(line)["request_id"] == "an-id"


async def test_a_dead_thread_ends_the_replica(build: Build, exits: list[str]) -> None:
    replica = build()
    await die(replica)

    with pytest.raises(UnavailableError):
        await replica.embed(call_of([1]))

    await until(lambda: bool(exits))


async def test_the_exit_leaves_time_for_the_last_replies(
    build: Build, exits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EXIT_DELAY_S", 60.0)
    replica = build()
    await die(replica)

    with pytest.raises(ModelThreadError):
        await replica.check_health()
    for _ in range(6):
        await asyncio.sleep(0)

    assert exits == []


async def test_a_replica_that_is_ending_rejects_calls(build: Build, encoder: FakeEncoder) -> None:
    replica = build()
    encoder.error = EncoderBrokenError()
    with pytest.raises(UnavailableError):
        await replica.embed(call_of([1]))
    encoder.error = None

    answer = await replica.embed(call_of([2]))

    assert answer == ReplicaRejected()
    assert len(encoder.batches) == 1


async def test_a_replica_ends_once(build: Build, encoder: FakeEncoder, exits: list[str]) -> None:
    replica = build()
    encoder.error = EncoderBrokenError()

    calls = [replica.embed(call_of([number])) for number in range(3)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    with pytest.raises(ModelThreadError, match="shutting down"):
        await replica.check_health()
    await until(lambda: bool(exits))
    await asyncio.sleep(0)

    assert [type(error) for error in errors] == [UnavailableError] * 3
    assert exits == ["exit"]


# Health.


async def test_a_replica_is_healthy_while_a_batch_runs(
    build: Build, encoder: FakeEncoder, clock: Clock, exits: list[str]
) -> None:
    replica = build(hang_timeout_s=10)
    encoder.may_end.clear()
    running = asyncio.create_task(replica.embed(call_of([1])))
    await encoder.begins()
    clock.now += 9

    await replica.check_health()
    state = await state_of(replica)
    encoder.may_end.set()
    await running

    assert state is not None
    assert exits == []


async def test_a_hanging_batch_fails_the_health_check(
    build: Build, encoder: FakeEncoder, clock: Clock, exits: list[str]
) -> None:
    replica = build(hang_timeout_s=10)
    encoder.may_end.clear()
    running = asyncio.create_task(replica.embed(call_of([1])))
    await encoder.begins()
    clock.now += 11

    state = await state_of(replica)
    with pytest.raises(ModelThreadError, match="more than 10 s"):
        await replica.check_health()
    await until(lambda: bool(exits))
    encoder.may_end.set()
    await running

    assert state is None


async def test_a_dead_thread_fails_the_health_check(build: Build, exits: list[str]) -> None:
    replica = build()
    await die(replica)

    state = await state_of(replica)
    with pytest.raises(ModelThreadError, match="dead"):
        await replica.check_health()
    await until(lambda: bool(exits))

    assert state is None


async def test_a_replica_that_is_ending_has_no_state(build: Build, encoder: FakeEncoder) -> None:
    replica = build()
    encoder.error = EncoderBrokenError()
    before = await state_of(replica)
    with pytest.raises(UnavailableError):
        await replica.embed(call_of([1]))

    assert before is not None
    assert await state_of(replica) is None


# Settings that change while the replica runs.


async def test_valid_settings_apply_to_the_next_batch(
    build: Build, encoder: FakeEncoder, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    replica = build()

    replica.reconfigure({"max_batch_tokens": 7, "max_queued_tokens": 99, "hang_timeout_s": 5})
    encoder.may_end.clear()
    running = asyncio.create_task(replica.embed(call_of([1])))
    await encoder.begins()
    state = await state_of(replica)
    clock.now += 6
    hanging = await state_of(replica)
    encoder.may_end.set()
    await running

    assert state is not None
    assert (state.max_batch_tokens, state.max_queued_tokens) == (7, 99)
    assert hanging is None
    assert encoder.budgets == [7]
    assert [line.levelname for line in log.records] == ["INFO"]
    assert "'max_batch_tokens': 7" in log.text


async def test_settings_that_are_not_sent_are_those_of_the_model(build: Build) -> None:
    replica = build(max_batch_tokens=64)
    replica.reconfigure({"max_batch_tokens": 7, "max_queued_tokens": 99})

    replica.reconfigure({"max_queued_tokens": 5})

    state = await state_of(replica)
    assert state is not None
    assert (state.max_batch_tokens, state.max_queued_tokens) == (64, 5)


async def test_without_a_token_budget_the_device_s_default_applies(
    build: Build, encoder: FakeEncoder
) -> None:
    replica = build()

    await replica.embed(call_of([1]))

    assert encoder.budgets == [2048]


@pytest.mark.parametrize(
    ("max_ongoing_requests", "calls"), [(1, 1), (64, 32), (512, 256), (4000, 256)]
)
async def test_two_batches_hold_no_more_calls_than_a_replica(
    build: Build, max_ongoing_requests: int, calls: int
) -> None:
    """Ray Serve logs a warning otherwise."""
    replica = build(deployment={"max_ongoing_requests": max_ongoing_requests})

    replica.reconfigure({})

    assert replica._encode._get_max_batch_size() == calls


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_batch_tokens": 0}, "max_batch_tokens: Input should be greater than 0"),
        ({"max_batch_tokens": 7, "unknown": 1}, "unknown: unknown setting"),
    ],
)
async def test_invalid_settings_are_logged_and_ignored(
    build: Build, log: pytest.LogCaptureFixture, settings: dict[str, Any], reason: str
) -> None:
    """If `reconfigure` raised, Ray Serve would replace a healthy replica."""
    replica = build()
    replica.reconfigure({"max_batch_tokens": 32})
    log.clear()

    replica.reconfigure(settings)

    state = await state_of(replica)
    assert state is not None
    assert state.max_batch_tokens == 32
    (line,) = log.records
    assert line.levelname == "ERROR"
    assert line.getMessage() == f"invalid user_config ignored: {reason}"
    assert line.exc_info is None


# Reports.


async def test_the_state_describes_the_replica(
    build: Build, encoder: FakeEncoder, clock: Clock
) -> None:
    replica = build(max_queued_tokens=500)
    encoder.may_end.clear()
    calls = [asyncio.create_task(replica.embed(call_of([1])))]
    await encoder.begins()
    calls += [asyncio.create_task(replica.embed(call_of([1, 2], [3]))) for _ in range(2)]
    await until(lambda: replica._ongoing_calls == 3)
    clock.now += 4

    state = await state_of(replica)
    encoder.may_end.set()
    await asyncio.gather(*calls)

    assert state is not None
    assert state.replica == NAME
    assert state.ongoing_calls == 3
    assert state.busy_seconds == 4
    assert (state.max_batch_tokens, state.max_queued_tokens) == (2048, 500)
    assert state.memory_bytes > 1_000_000


async def test_the_state_names_the_callers(build: Build) -> None:
    replica = build()

    for caller, waiting_tokens in (("one", 300), ("two", 0), ("three", 7), ("three", 0)):
        await replica.embed(call_of([1], caller=caller, waiting_tokens=waiting_tokens))

    state = await state_of(replica)
    assert state is not None
    assert state.callers == ("one", "two", "three")


async def test_the_state_has_only_built_in_types(build: Build) -> None:
    """Ray Serve's controller handles it, and cannot import this project."""
    replica = build()
    await replica.embed(call_of([1], waiting_tokens=7))

    stats = await replica.record_routing_stats()

    callers = stats["callers"]
    assert {type(value) for value in stats.values()} == {str, int, float, tuple}
    assert [type(caller) for caller in callers] == [str]


async def test_the_autoscaling_report_is_busy_time_and_waiting_work(
    build: Build, encoder: FakeEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading the model does not count as busy time."""
    monkeypatch.setattr(Replica, "load_s", 100.0)
    encoder.batch_s = 2.0
    replica = build()

    await replica.embed(call_of([1, 2, 3], [4], waiting_tokens=10))
    await until(lambda: replica._thread._busy[1] is None)  # the result arrives before that
    clock.now += 6
    replica._load_report.record_backlog("two", 2)

    assert await replica.record_autoscaling_stats() == {BUSY: 0.25, WAITING_S: pytest.approx(6.0)}
