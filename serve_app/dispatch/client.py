"""The ingress's client of one model: admit, split, call, retry, and translate Ray's errors.

The number of pending tokens is limited. A request is split into chunks of at most half a token
budget, so that each call leaves room for other requests. At most `max_in_flight` chunks of one
request are in the queue or in flight at the same time, so that later requests are scheduled between
its chunks. This module does not depend on HTTP or JSON.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from grpc import RpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.dispatch.admission import Admission
from serve_app.dispatch.chunks import join, poison_pill, split
from serve_app.dispatch.queue import Answered, CallQueue, ReplicaDiedError, ReplicaRejectedError
from serve_app.dispatch.replica_monitor import ReplicaMonitor
from serve_app.errors import OverloadedError, UnavailableError
from serve_app.messages import (
    EmbedChunk,
    EmbedResult,
    ModelAnswer,
    ReplicaRejected,
    ReplicaState,
    TokenizedInputs,
)
from serve_app.observability.metrics import Metrics, Reason

# Embedding is idempotent, so a chunk can be sent again after its replica died. A replica holds at
# most one retry at a time. A chunk that two replicas held when they died is therefore the cause.
_MAX_ATTEMPTS = 2
# Calls in flight to each replica: one is computed and one is ready, so that the model never waits.
_CALLS_PER_REPLICA = 2
# Distance between the virtual start times of a request's successive chunks, in multiples of the
# inference time of the earlier chunk. With two calls per replica, a request that has the model to
# itself advances at 2. At 4, a large request therefore claims half of the model's time, and chunks of
# other requests are scheduled between the chunks of the large one.
_CHUNK_PACE = 4.0


class Response(Protocol):
    """The part of Ray Serve's `DeploymentResponse` that is used here."""

    def __await__(self) -> Any:
        """Wait for the result."""

    def cancel(self) -> None:
        """Cancel the call, also in the replica."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of one model's client.

    Attributes:
        model: the served model's name.
        chunk_tokens: maximum number of tokens in a call until the replicas have reported their token
            budgets. A longer input is sent in a call of its own.
        max_queued_tokens: maximum number of pending tokens until the replicas have reported their
            limits. If no tokens are pending, one request of any size is accepted.
        replica_wait_timeout_s: seconds that a call may wait while no replica is ready, or while all
            replicas reject it.
        retry_after_s: `Retry-After` value, in seconds, of a 503 response. A 429 response also uses
            it until the throughput has been measured.
        bulk_share: minimum fraction of the tokens sent, 0 to 1, that are bulk while interactive and
            bulk requests are queued.
        retry_pause_s: maximum pause, in seconds, before a chunk is sent again.
        scales_to_zero: whether the model may have no replica while it is idle.
    """

    model: str
    chunk_tokens: int
    max_queued_tokens: int
    replica_wait_timeout_s: float
    retry_after_s: int
    bulk_share: float
    retry_pause_s: float = 0.1
    scales_to_zero: bool = False


class ModelClient:
    """Calls the replicas of one model.

    Args:
        handle: Ray Serve's `DeploymentHandle` of the model's deployment.
        settings: see `ClientSettings`.
        metrics: counts chunks and rejections.
    """

    def __init__(self, handle: Any, settings: ClientSettings, *, metrics: Metrics) -> None:
        self._handle = handle
        self._settings = settings
        self._metrics = metrics
        self.admission = Admission(
            limit=settings.max_queued_tokens, unknown_s=settings.retry_after_s
        )
        self._queue = CallQueue(
            self._call,
            budget=settings.chunk_tokens,
            max_in_flight=_CALLS_PER_REPLICA,
            bulk_share=settings.bulk_share,
            max_attempts=_MAX_ATTEMPTS,
            wait_timeout_s=settings.replica_wait_timeout_s,
            on_retry=self._count_retry,
            pause=self._pause,
        )
        self._monitor = ReplicaMonitor(
            handle,
            waiting_tokens=lambda: self.admission.units,
            on_poll=self._adapt,
            pause_s=settings.replica_wait_timeout_s,
        )

    async def embed(
        self, inputs: TokenizedInputs, *, request_id: str, is_bulk: bool = False
    ) -> ModelAnswer:
        """Return the vectors of all inputs.

        Args:
            inputs: the tokenized inputs of one request.
            request_id: the request's id, for logs.
            is_bulk: whether the request is bulk. Interactive requests go before bulk requests, and
                under overload bulk requests are rejected first.

        Raises:
            OverloadedError: the token limit is reached, or Ray Serve's queue of calls is full.
            UnavailableError: no replica is ready, or all replicas rejected the call.
            InferenceError: two replicas died while they held the same chunk.
        """
        if not self.admission.has_room(inputs.tokens, is_bulk=is_bulk):
            raise self._overloaded("pending_tokens")
        started = time.perf_counter()
        chunks = split(inputs, chunk_tokens=-(-self._queue.budget // 2), request_id=request_id)
        self.admission.add(inputs.tokens, is_bulk=is_bulk)
        self._metrics.pending_changed(model=self._settings.model, tokens=self.admission.units)
        self._monitor.start()
        answers: dict[int, Answered] = {}
        try:
            await self._run(chunks, answers, is_bulk=is_bulk)
            return join(chunks, [answers[number] for number in range(len(chunks))], started)
        finally:
            unanswered = [chunk.inputs.tokens for n, chunk in enumerate(chunks) if n not in answers]
            self.admission.drop(sum(unanswered), is_bulk=is_bulk)
            self._metrics.pending_changed(model=self._settings.model, tokens=self.admission.units)

    async def states(self) -> list[ReplicaState]:
        """Return the state of every replica that is ready to embed."""
        return _present(await self._monitor.ask())

    async def is_ready(self) -> bool:
        """Return whether a replica is ready, or the first request would start one."""
        return self._settings.scales_to_zero or bool(await self.states())

    async def _run(
        self, chunks: Sequence[EmbedChunk], answers: dict[int, Answered], *, is_bulk: bool
    ) -> None:
        """Send chunks, at most `max_in_flight` at once, and store their answers by number.

        The first failure cancels the other chunks.
        """
        now = time.perf_counter()
        if len(chunks) == 1:
            answers[0] = await self._send(chunks[0], is_bulk=is_bulk, virtual_start=now)
            return
        remaining = iter(enumerate(chunks))

        async def send_remaining() -> None:
            virtual_start = now
            for number, chunk in remaining:
                answer = answers[number] = await self._send(
                    chunk, is_bulk=is_bulk, virtual_start=virtual_start
                )
                virtual_start = min(
                    virtual_start + _CHUNK_PACE * answer.result.inference_s, time.perf_counter()
                )

        tasks = [asyncio.create_task(send_remaining()) for _ in range(self._queue.max_in_flight)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _send(self, chunk: EmbedChunk, *, is_bulk: bool, virtual_start: float) -> Answered:
        try:
            answered = await self._queue.send(chunk, is_bulk=is_bulk, virtual_start=virtual_start)
        except ReplicaDiedError:
            raise poison_pill(chunk) from None
        except ReplicaRejectedError:
            raise self._unavailable("its replicas reject the call") from None
        self.admission.finish(chunk.inputs.tokens, is_bulk=is_bulk)
        self._metrics.chunk_finished(
            model=self._settings.model,
            tokens=chunk.inputs.tokens,
            result=answered.result,
            queue_s=answered.queue_s,
        )
        return answered

    async def _call(self, chunks: Sequence[EmbedChunk]) -> Sequence[EmbedResult]:
        """Make one call, and translate Ray's errors into ours."""
        try:
            results = await _answer(self._handle.embed.remote(chunks))
        except UnavailableError:
            raise ReplicaDiedError from None
        except RayTaskError:
            raise  # an unexpected error in the replica's own code
        except (RayError, RpcError):  # RpcError: Ray Serve uses gRPC between replicas
            raise ReplicaDiedError from None
        except BackPressureError:
            raise self._overloaded("serve_queue") from None
        except DeploymentUnavailableError:
            raise self._unavailable("its deployment failed to start") from None
        if isinstance(results, ReplicaRejected):
            raise ReplicaRejectedError
        return results

    def _count_retry(self) -> None:
        self._metrics.chunk_retried(model=self._settings.model)

    async def _pause(self) -> None:
        """Sleep for a random time, so that a dead replica's callers do not all retry at once."""
        await asyncio.sleep(self._settings.retry_pause_s * random.uniform(0.2, 1))  # noqa: S311  # no secret

    def _adapt(self, answers: Sequence[ReplicaState | None], absent_s: float) -> None:
        """Adapt the limits to the replicas' states; fail old chunks if no replica is ready."""
        # Count replicas that hang, too. Otherwise the calls that are stuck in them would take the
        # slots of other replicas.
        self._queue.max_in_flight = _CALLS_PER_REPLICA * max(len(answers), 1)
        timeout_s = self._settings.replica_wait_timeout_s
        if states := _present(answers):
            # Use the values that the replicas report: `user_config` changes their settings while
            # they run, and the default token budget depends on their device.
            self._queue.budget = min(state.max_batch_tokens for state in states)
            self.admission.limit = sum(state.max_queued_tokens for state in states)
            # Use the highest count: a replica that has just started has not yet heard from all
            # ingress replicas.
            others = max(state.others_waiting for state in states)
            # If no tokens are pending, this is the last poll, and the count would become outdated.
            self.admission.sharers = 1 + others if self.admission.units else 1
        elif absent_s >= timeout_s:  # Ray Serve lets a call wait forever if there is no replica
            self._queue.fail_waiting(self._unavailable("no replica is ready"), after_s=timeout_s)

    def _overloaded(self, reason: Reason) -> OverloadedError:
        self._metrics.overloaded(reason=reason)
        message = f"The queue of {self._settings.model} is full. Retry after the delay given in the Retry-After header."
        return OverloadedError(message, "overloaded", retry_after_s=self.admission.retry_after_s)

    def _unavailable(self, reason: str) -> UnavailableError:
        message = f"{self._settings.model} is unavailable: {reason}."
        return UnavailableError(
            message, "model_unavailable", retry_after_s=self._settings.retry_after_s
        )


def _present(answers: Sequence[ReplicaState | None]) -> list[ReplicaState]:
    return [state for state in answers if state is not None]


async def _answer(response: Response) -> Sequence[EmbedResult] | ReplicaRejected:
    """Wait for a call, and cancel it if the caller is cancelled.

    Raises:
        ReplicaRejectedError: Ray Serve cancelled the call.
    """
    waiting = asyncio.ensure_future(_result(response))
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


async def _result(response: Response) -> Sequence[EmbedResult] | ReplicaRejected:
    answer: Sequence[EmbedResult] | ReplicaRejected = await response
    return answer
