"""A model's deployment as the ingress sees it: split, call, retry, and Ray's errors turned into ours.

What waits here is bounded in tokens. A request is cut into chunks of at most half a token budget, so that a call is a
unit of work to Ray Serve, and leaves room in its batch for others. Of one request only as many chunks wait at once as
calls may be under way, so that others that come later find their place between its chunks. Knows nothing of HTTP or JSON.
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

# Embedding is idempotent, so a chunk whose replica died may be sent again. A replica has one such chunk at a time, so one
# that is there at two deaths is their cause.
_MAX_ATTEMPTS = 2
# Calls to one replica that are under way at once: one computes and one is ready, so that the model need not wait.
_CALLS_PER_REPLICA = 2
# The next chunk of a request counts as come so many times the last one's computing after that one. Alone and with two
# calls to a replica it is two; so a large request is due half of the model, and others find a place between its chunks.
_CHUNK_PACE = 4.0


class Response(Protocol):
    """What Ray Serve's handle returns at once for a call: something to await or to cancel."""

    def __await__(self) -> Any:
        """Wait for the answer."""

    def cancel(self) -> None:
        """Give the call up, in the replica as well."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client is told of its model.

    Attributes:
        model: the served name.
        chunk_tokens: most tokens in a call, until a replica has told its own budget; a longer input goes alone.
        max_queued_tokens: most tokens accepted and not answered, until replicas have told theirs; one request always
            fits.
        replica_wait_timeout_s: seconds that a call may wait while there is no replica at all, or none that takes it.
        retry_after_s: what a refused client is told to wait while nothing better is known.
        retry_pause_s: most seconds before a chunk goes out again.
        bulk_share: least share of the work that is bulk's while others wait, too.
        scales_to_zero: whether there is no replica while nothing is to do.
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
        metrics: where chunks are counted.
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
            inputs: what is embedded.
            request_id: the request's, for logs.
            is_bulk: whether others may overtake it; it is also refused before them.

        Raises:
            OverloadedError: there is no room, here or in Ray Serve's queue of calls.
            UnavailableError: no replica answers.
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
            left = [chunk.inputs.tokens for n, chunk in enumerate(chunks) if n not in answers]
            self.admission.drop(sum(left), is_bulk=is_bulk)
            self._metrics.pending_changed(model=self._settings.model, tokens=self.admission.units)

    async def states(self) -> list[ReplicaState]:
        """Return the state of every replica that can embed now."""
        return _present(await self._monitor.ask())

    async def is_ready(self) -> bool:
        """Return whether a replica can embed now, or would be started by the first request."""
        return self._settings.scales_to_zero or bool(await self.states())

    async def _run(
        self, chunks: Sequence[EmbedChunk], answers: dict[int, Answered], *, is_bulk: bool
    ) -> None:
        """Run chunks, a few at once, and put down their answers by number; the first that fails ends the others."""
        now = time.perf_counter()
        if len(chunks) == 1:
            answers[0] = await self._send(chunks[0], is_bulk=is_bulk, virtual_start=now)
            return
        to_do = iter(enumerate(chunks))

        async def work() -> None:
            virtual_start = now
            for number, chunk in to_do:
                answer = answers[number] = await self._send(
                    chunk, is_bulk=is_bulk, virtual_start=virtual_start
                )
                virtual_start = min(
                    virtual_start + _CHUNK_PACE * answer.result.inference_s, time.perf_counter()
                )

        tasks = [asyncio.create_task(work()) for _ in range(self._queue.max_in_flight)]
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
            raise self._unavailable("those that are there do not take it") from None
        self.admission.finish(chunk.inputs.tokens, is_bulk=is_bulk)
        self._metrics.chunk_finished(
            model=self._settings.model,
            tokens=chunk.inputs.tokens,
            result=answered.result,
            queue_s=answered.queue_s,
        )
        return answered

    async def _call(self, chunks: Sequence[EmbedChunk]) -> Sequence[EmbedResult]:
        """Make one call, and virtual_start what Ray raises into ours."""
        try:
            results = await _answer(self._handle.embed.remote(chunks))
        except UnavailableError:
            raise ReplicaDiedError from None
        except RayTaskError:
            raise  # what the replica's own code did not expect
        except (RayError, RpcError):  # RpcError: with gRPC between replicas
            raise ReplicaDiedError from None
        except BackPressureError:
            raise self._overloaded("serve_queue") from None
        except DeploymentUnavailableError:
            raise self._unavailable("it failed to start") from None
        if isinstance(results, ReplicaRejected):
            raise ReplicaRejectedError
        return results

    def _count_retry(self) -> None:
        self._metrics.chunk_retried(model=self._settings.model)

    async def _pause(self) -> None:
        """Wait a moment, so that not all callers of a dead replica come back at once."""
        await asyncio.sleep(self._settings.retry_pause_s * random.uniform(0.2, 1))  # noqa: S311  # no secret

    def _adapt(self, answers: Sequence[ReplicaState | None], absent_s: float) -> None:
        """Follow how many replicas there are and what they take, and fail what waits for none."""
        # Of those that hang, too: calls that hang with them take nobody else's place.
        self._queue.max_in_flight = _CALLS_PER_REPLICA * max(len(answers), 1)
        patience_s = self._settings.replica_wait_timeout_s
        if states := _present(answers):
            # Settings may have been changed there, and the budget may be the device's.
            self._queue.budget = min(state.max_batch_tokens for state in states)
            self.admission.limit = sum(state.max_queued_tokens for state in states)
            # As the one says that was told most; another may have started just now.
            others = max(state.others_waiting for state in states)
            # Where nothing waits this is the last look, and what it says would count for ever.
            self.admission.sharers = 1 + others if self.admission.units else 1
        elif absent_s >= patience_s:  # calls wait for ever where there is no replica
            self._queue.fail_waiting(self._unavailable("none is there"), after_s=patience_s)

    def _overloaded(self, reason: Reason) -> OverloadedError:
        self._metrics.overloaded(reason=reason)
        message = f"{self._settings.model} has more work than it can queue. Try again."
        return OverloadedError(message, "overloaded", retry_after_s=self.admission.retry_after_s)

    def _unavailable(self, why: str) -> UnavailableError:
        message = f"{self._settings.model} has no replica that answers: {why}."
        return UnavailableError(
            message, "model_unavailable", retry_after_s=self._settings.retry_after_s
        )


def _present(answers: Sequence[ReplicaState | None]) -> list[ReplicaState]:
    return [state for state in answers if state is not None]


async def _answer(response: Response) -> Sequence[EmbedResult] | ReplicaRejected:
    """Wait for a call; whoever stops waiting ends it.

    Raises:
        ReplicaRejectedError: it was ended by Ray Serve.
    """
    waiting = asyncio.ensure_future(_awaited(response))
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
    """Look at a call's error, also when its caller has gone; asyncio would log it otherwise, message and all."""
    if not waiting.cancelled():
        waiting.exception()


async def _awaited(response: Response) -> Sequence[EmbedResult] | ReplicaRejected:
    answer: Sequence[EmbedResult] | ReplicaRejected = await response
    return answer
