import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from grpc import RpcError
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.dispatch.calls import ReplicaCaller
from serve_app.dispatch.chunks import EmbedChunk, pack
from serve_app.dispatch.drain_rate import DrainRate
from serve_app.dispatch.queue import ReplicaDiedError, ReplicaRejectedError, TooManyCallsError
from serve_app.dispatch.refusals import Refusals
from serve_app.errors import UnavailableError
from serve_app.messages import EmbedCall, EmbedResult, ReplicaRejected
from serve_app.observability.metrics import Metrics
from tests.support.fakes import MODEL, FakeHandle, counted, result_of, tokenized

pytestmark = pytest.mark.anyio

CALL = pack(
    [EmbedChunk(tokenized([1, 2], [3]), "an-id")], is_retry=False, caller="", waiting_tokens=0
)
MARKER = "xyzzy"


def caller_of(handle: FakeHandle, metrics: Metrics | None = None) -> ReplicaCaller:
    """Return the product's caller on a fake handle."""
    metrics = metrics or Metrics()
    refusals = Refusals(MODEL, drain_rate=DrainRate(unknown_s=1), retry_after_s=7, metrics=metrics)
    return ReplicaCaller(handle, MODEL, refusals=refusals, metrics=metrics, retry_pause_s=0.001)


def failing(error: Exception) -> Callable[[EmbedCall], Awaitable[EmbedResult]]:
    """Return a replica that raises."""

    async def answer(_call: EmbedCall) -> EmbedResult:
        raise error

    return answer


async def embed(call: EmbedCall) -> EmbedResult:
    return result_of(call)


async def wait(_call: EmbedCall) -> EmbedResult:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_result_is_returned_and_counted() -> None:
    metrics = Metrics()

    result = await caller_of(FakeHandle(embed), metrics).call(CALL)

    assert result.vectors.tolist() == result_of(CALL).vectors.tolist()
    assert counted(metrics, "embeddings_tokens_total", model=MODEL) == 3
    assert counted(metrics, "embeddings_inputs_total", model=MODEL) == 2
    assert counted(metrics, "embeddings_inference_seconds_count", model=MODEL) == 1


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", b"0" * 16),
        RpcError(),
        UnavailableError("The model's replica is being replaced.", "model_unavailable"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_death_of_a_replica_is_translated(error: Exception) -> None:
    with pytest.raises(ReplicaDiedError):
        await caller_of(FakeHandle(failing(error))).call(CALL)


async def test_back_pressure_of_ray_serve_is_translated() -> None:
    error = BackPressureError(num_queued_requests=4, max_queued_requests=4)

    with pytest.raises(TooManyCallsError):
        await caller_of(FakeHandle(failing(error))).call(CALL)


async def test_a_failed_deployment_is_unavailable() -> None:
    error = DeploymentUnavailableError(DeploymentID(name="d", app_name="a"))

    with pytest.raises(UnavailableError) as raised:
        await caller_of(FakeHandle(failing(error))).call(CALL)

    assert raised.value.message == f"{MODEL} is unavailable: its deployment failed to start."
    assert raised.value.retry_after_s == 7


async def test_an_unexpected_error_of_the_replica_is_not_a_death() -> None:
    error = RayTaskError("embed", "a traceback", ZeroDivisionError(MARKER)).as_instanceof_cause()

    with pytest.raises(ZeroDivisionError):
        await caller_of(FakeHandle(failing(error))).call(CALL)


async def test_a_rejected_call_is_reported_as_rejected() -> None:
    async def reject(_call: EmbedCall) -> Any:
        return ReplicaRejected()

    with pytest.raises(ReplicaRejectedError):
        await caller_of(FakeHandle(reject)).call(CALL)


async def test_a_call_that_ray_cancels_is_reported_as_rejected() -> None:
    handle = FakeHandle(wait)
    call = asyncio.create_task(caller_of(handle).call(CALL))
    await handle.called.wait()

    handle.responses[0].cancel()

    with pytest.raises(ReplicaRejectedError):
        await call


async def test_cancelling_a_call_cancels_it_in_the_replica() -> None:
    handle = FakeHandle(wait)
    call = asyncio.create_task(caller_of(handle).call(CALL))
    await handle.called.wait()

    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert handle.responses[0].is_cancelled


async def test_the_error_of_an_abandoned_call_is_not_logged(log: pytest.LogCaptureFixture) -> None:
    """Its message can contain the text of an input."""
    fail = asyncio.Event()

    async def answer(_call: EmbedCall) -> EmbedResult:
        try:
            await fail.wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError(MARKER) from None
        raise AssertionError

    handle = FakeHandle(answer)
    call = asyncio.create_task(caller_of(handle).call(CALL))
    await handle.called.wait()
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    del call, handle
    await asyncio.sleep(0)

    assert MARKER not in log.text


async def test_a_pause_counts_the_retries_and_is_short() -> None:
    metrics = Metrics()
    caller = caller_of(FakeHandle(embed), metrics)

    await caller.pause(retries=2)
    await caller.pause(retries=0)

    assert counted(metrics, "embeddings_chunk_retries_total", model=MODEL) == 2
