import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.deployments.broadcast import ask_all

pytestmark = pytest.mark.anyio

Replica = Callable[[], Awaitable[str | None]]
ERRORS = [
    TimeoutError(),
    ActorDiedError(),
    DeploymentUnavailableError(None),
    AioRpcError(StatusCode.UNAVAILABLE, Metadata(), Metadata()),
]


class Handle:
    """A handle of a deployment whose replicas answer with the given functions.

    Attributes:
        broadcasts: the method and the arguments of each broadcast.
        cancelled: the number of cancelled calls.
    """

    def __init__(self, *replicas: Replica) -> None:
        self.broadcasts: list[tuple[Any, ...]] = []
        self.cancelled = 0
        self._replicas = replicas

    def broadcast(self, *call: object) -> SimpleNamespace:
        """Call a method on every replica."""
        self.broadcasts.append(call)
        return SimpleNamespace(_fetch_replica_results_async=self.fetch)

    async def fetch(self) -> list[SimpleNamespace] | None:
        """Return the result of each replica."""
        return [SimpleNamespace(get_async=self._watched(replica)) for replica in self._replicas]

    def _watched(self, replica: Replica) -> Replica:
        async def get() -> str | None:
            try:
                return await replica()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        return get


def answering(answer: str | None) -> Replica:
    """Return a replica that answers at once."""

    async def replica() -> str | None:
        return answer

    return replica


def failing(error: BaseException) -> Replica:
    """Return a replica whose call fails."""

    async def replica() -> str | None:
        raise error

    return replica


async def hanging() -> str | None:
    """Never answer."""
    await asyncio.Event().wait()
    return "too late"


async def test_the_method_gets_its_arguments_on_all_replicas() -> None:
    handle = Handle(answering("a"), answering(None), answering("b"))

    answers = await ask_all(handle, "status", "me", 3, timeout_s=60)

    assert handle.broadcasts == [("status", "me", 3)]
    assert answers == ["a", None, "b"]


async def test_a_late_replica_does_not_hide_the_others() -> None:
    handle = Handle(answering("a"), hanging, answering("b"))

    answers = await ask_all(handle, "status", timeout_s=0.02)

    assert answers == ["a", None, "b"]


@pytest.mark.parametrize(
    "error", [*ERRORS, RuntimeError("dying"), asyncio.CancelledError()], ids=repr
)
async def test_a_replica_whose_call_fails_is_left_out(error: BaseException) -> None:
    handle = Handle(answering("a"), failing(error), answering("b"))

    answers = await ask_all(handle, "status", timeout_s=60)

    assert answers == ["a", "b"]


async def test_the_call_to_a_late_replica_is_cancelled() -> None:
    handle = Handle(hanging, answering("a"), hanging)

    await ask_all(handle, "status", timeout_s=0.02)
    await asyncio.sleep(0)

    assert handle.cancelled == 2


async def test_a_cancelled_caller_cancels_all_calls() -> None:
    is_asked = asyncio.Event()

    async def tell_and_hang() -> str | None:
        is_asked.set()
        return await hanging()

    handle = Handle(hanging, tell_and_hang)
    asking = asyncio.create_task(ask_all(handle, "status", timeout_s=60))
    await is_asked.wait()

    asking.cancel()
    await asyncio.wait([asking])
    await asyncio.sleep(0)

    assert asking.cancelled()
    assert handle.cancelled == 2


@pytest.mark.parametrize("results", [[], None])
async def test_a_deployment_without_replicas_has_no_answers(results: list[Any] | None) -> None:
    class EmptyHandle(Handle):
        async def fetch(self) -> list[SimpleNamespace] | None:
            return results

    assert await ask_all(EmptyHandle(), "status", timeout_s=60) == []


async def test_a_late_list_of_replicas_gives_no_answers() -> None:
    class LateHandle(Handle):
        async def fetch(self) -> list[SimpleNamespace] | None:
            await asyncio.Event().wait()
            return await super().fetch()

    assert await ask_all(LateHandle(answering("a")), "status", timeout_s=0.02) == []


async def test_list_and_answers_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real_time = loop.time

    class SlowHandle(Handle):
        async def fetch(self) -> list[SimpleNamespace] | None:
            monkeypatch.setattr(loop, "time", lambda: real_time() + 59.99)
            return await super().fetch()

    async with asyncio.timeout(65):
        answers = await ask_all(SlowHandle(answering("a"), hanging), "status", timeout_s=60)

    assert answers == ["a", None]


@pytest.mark.parametrize("error", ERRORS[:3])
async def test_a_failed_broadcast_returns_no_answers(error: Exception) -> None:
    class FailingHandle(Handle):
        async def fetch(self) -> list[SimpleNamespace] | None:
            raise error

    assert await ask_all(FailingHandle(answering("a")), "status", timeout_s=60) == []


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_deployment_that_cannot_be_called_has_no_answers(error: Exception) -> None:
    class FailedHandle(Handle):
        def broadcast(self, *call: object) -> SimpleNamespace:
            super().broadcast(*call)
            raise error

    assert await ask_all(FailedHandle(answering("a")), "status", timeout_s=60) == []


async def test_a_programming_error_in_a_broadcast_is_raised() -> None:
    class BrokenHandle(Handle):
        async def fetch(self) -> list[SimpleNamespace] | None:
            raise AttributeError("Ray Serve renamed its private method")

    with pytest.raises(AttributeError, match="renamed"):
        await ask_all(BrokenHandle(), "status", timeout_s=60)
