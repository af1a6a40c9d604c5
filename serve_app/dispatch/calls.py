"""Calls a model's replicas through Ray Serve, and translates Ray's errors."""

import asyncio
import random
from typing import Any, Protocol

from grpc import RpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.dispatch.queue import ReplicaDiedError, ReplicaRejectedError, TooManyCallsError
from serve_app.dispatch.refusals import Refusals
from serve_app.errors import UnavailableError
from serve_app.messages import EmbedCall, EmbedResult, ReplicaRejected
from serve_app.observability.metrics import Metrics


class Response(Protocol):
    """The part of Ray Serve's `DeploymentResponse` that is used here."""

    def __await__(self) -> Any:
        """Wait for the result."""

    def cancel(self) -> None:
        """Cancel the call, also in the replica."""


class ReplicaCaller:
    """Calls the replicas of one model. `CallQueue` decides what a call carries, and when.

    Args:
        handle: Ray Serve's `DeploymentHandle` of the model's deployment.
        model: the served model's name.
        refusals: creates the errors of the model.
        metrics: counts calls and retries.
        retry_pause_s: maximum pause, in seconds, before chunks are sent again.
    """

    def __init__(
        self,
        handle: Any,
        model: str,
        *,
        refusals: Refusals,
        metrics: Metrics,
        retry_pause_s: float = 0.1,
    ) -> None:
        self._handle = handle
        self._model = model
        self._refusals = refusals
        self._metrics = metrics
        self._retry_pause_s = retry_pause_s

    async def call(self, call: EmbedCall) -> EmbedResult:
        """Make one call to any replica.

        Raises:
            ReplicaDiedError: the replica died.
            ReplicaRejectedError: the replica cannot take the call now.
            TooManyCallsError: Ray Serve's queue of calls is full.
            UnavailableError: the deployment failed to start.
        """
        try:
            result = await _result(self._handle.embed.remote(call))
        except UnavailableError:
            raise ReplicaDiedError from None
        except RayTaskError:
            raise  # an unexpected error in the replica's own code
        except (RayError, RpcError):  # RpcError: Ray Serve uses gRPC between replicas
            raise ReplicaDiedError from None
        except BackPressureError:
            raise TooManyCallsError from None
        except DeploymentUnavailableError:
            raise self._refusals.unavailable("its deployment failed to start") from None
        if isinstance(result, ReplicaRejected):
            raise ReplicaRejectedError
        self._metrics.call_finished(model=self._model, tokens=call.tokens, result=result)
        return result

    async def pause(self, *, retries: int) -> None:
        """Sleep for a random time, so that a dead replica's callers do not all retry at once.

        Args:
            retries: the number of chunks that are sent again because their replica died.
        """
        self._metrics.chunks_retried(model=self._model, chunks=retries)
        await asyncio.sleep(self._retry_pause_s * random.uniform(0.2, 1))  # noqa: S311  # no secret


async def _result(response: Response) -> EmbedResult | ReplicaRejected:
    """Wait for a call, and cancel it if the caller is cancelled.

    Raises:
        ReplicaRejectedError: Ray Serve cancelled the call.
    """
    waiting = asyncio.ensure_future(_wait(response))
    waiting.add_done_callback(_retrieve)
    try:
        await asyncio.wait([waiting])
        if waiting.cancelled():
            raise ReplicaRejectedError
        return waiting.result()
    finally:
        if not waiting.done():
            response.cancel()
            waiting.cancel()


def _retrieve(waiting: asyncio.Future[Any]) -> None:
    """Retrieve a call's exception, so that asyncio does not log it: its message can contain an input."""
    if not waiting.cancelled():
        waiting.exception()


async def _wait(response: Response) -> EmbedResult | ReplicaRejected:
    result: EmbedResult | ReplicaRejected = await response
    return result
