"""The queue of chunks in front of a model's replicas.

Theory of operation. Each chunk is queued, in flight or done:

- *Queued* chunks form one list per priority class (interactive and bulk), sorted by virtual start
  time. Normally, a chunk's virtual start time is its arrival time. The later chunks of a large
  request have a later virtual start time, so that chunks of other requests are scheduled between
  them.
- *In flight* chunks belong to a call. Whenever fewer than `max_in_flight` calls run, `schedule`
  takes the first chunks that fit one token budget, regardless of the request they belong to. Under
  load, a call therefore carries a full batch. Without load, a chunk is sent at once.
- A chunk is *done* when its caller has the result or an error, or was cancelled. A call is
  cancelled once all its chunks are done.

Two events move a chunk from in flight back to queued:

- The replica died. The chunk may have caused the death, so it is marked as a retry. A retried chunk
  is sent in a call of its own. After `max_attempts` deaths, the chunk fails.
- The replica rejected the call. The chunk is sent again. It fails if replicas have rejected it for
  more than `wait_timeout_s` seconds.

Interactive chunks go before bulk chunks. While chunks of both classes are queued, the bulk class is
owed the fraction `bulk_share` of the tokens sent. Bulk chunks go first while this debt is positive.
The debt is limited to one call's token budget in either direction, so that a class with little
traffic cannot build up a large claim.

A call can carry chunks of several callers. It therefore runs in an empty context: Ray Serve cancels
everything that was started in a request's context when that request ends.

All methods run on one event loop. This module does not depend on Ray or on the model.
"""

import asyncio
import time
from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, takewhile
from operator import attrgetter

from serve_app.messages import EmbedChunk, EmbedResult
from serve_app.token_budget import take_batch

Call = Callable[[Sequence[EmbedChunk]], Awaitable[Sequence[EmbedResult]]]


class ReplicaDiedError(Exception):
    """The replica handling a call died. The call's chunks can safely be sent again."""


class ReplicaRejectedError(Exception):
    """The replica cannot take the call at the moment. The call's chunks are not at fault."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a chunk, with its times.

    Attributes:
        result: the replica's result.
        at: the time at which the result arrived, from `time.perf_counter`.
        queue_s: seconds from `send` to the result, without the inference time of the chunk's batch.
    """

    result: EmbedResult
    at: float
    queue_s: float


@dataclass(slots=True, eq=False)
class _Ticket:
    chunk: EmbedChunk
    answer: asyncio.Future[Answered]
    enqueued_at: float
    virtual_start: float
    is_bulk: bool
    deaths: int = 0
    rejected_since: float | None = None

    @property
    def tokens(self) -> int:
        return self.chunk.inputs.tokens

    def note_death(self) -> None:
        """Count the death of a replica that held the chunk, and mark the chunk as a retry."""
        self.deaths += 1
        self.rejected_since = None
        self.chunk = replace(self.chunk, is_retry=True)

    def note_rejection(self) -> float:
        """Return the seconds since a replica first rejected the chunk."""
        now = time.perf_counter()
        if self.rejected_since is None:
            self.rejected_since = now
        return now - self.rejected_since


class CallQueue:
    """The queued chunks of one model, and its calls in flight.

    Args:
        call: makes one call. It raises `ReplicaDiedError` if the replica died and
            `ReplicaRejectedError` if the call should be repeated; any other exception fails the
            chunks.
        budget: maximum number of tokens in a call. A larger chunk is sent in a call of its own. The
            budget may change at any time.
        max_in_flight: maximum number of concurrent calls. It may change at any time.
        bulk_share: minimum fraction of the tokens sent, 0 to 1, that are bulk while chunks of both
            classes are queued.
        max_attempts: number of replica deaths after which a chunk fails.
        wait_timeout_s: seconds for which replicas may reject a chunk before the chunk fails.
        on_retry: called for each chunk that is sent again after a replica's death.
        pause: called and awaited before chunks are sent again.
    """

    def __init__(
        self,
        call: Call,
        *,
        budget: int,
        max_in_flight: int,
        bulk_share: float,
        max_attempts: int,
        wait_timeout_s: float,
        on_retry: Callable[[], None],
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        self.budget = budget
        self.max_in_flight = max_in_flight
        self._call = call
        self._bulk_share = bulk_share
        self._max_attempts = max_attempts
        self._wait_timeout_s = wait_timeout_s
        self._on_retry = on_retry
        self._pause = pause
        self._interactive: list[_Ticket] = []
        self._bulk: list[_Ticket] = []
        self._owed_to_bulk = 0.0  # tokens
        self._in_flight: dict[asyncio.Task[None], list[_Ticket]] = {}

    async def send(
        self, chunk: EmbedChunk, *, is_bulk: bool = False, virtual_start: float | None = None
    ) -> Answered:
        """Return the result of a chunk.

        If the caller is cancelled, the chunk leaves the queue at once.

        Args:
            chunk: the inputs.
            is_bulk: whether the chunk is bulk. Interactive chunks go before bulk chunks.
            virtual_start: the chunk's position in its class, as a time of `time.perf_counter`. None
                stands for the current time.

        Raises:
            ReplicaDiedError: `max_attempts` replicas died while they held the chunk.
            ReplicaRejectedError: replicas rejected the chunk for more than `wait_timeout_s` seconds.
            Exception: the error raised by the call or passed to `fail_waiting`.
        """
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        now = time.perf_counter()
        start = now if virtual_start is None else virtual_start
        self._enqueue(_Ticket(chunk, answer, now, start, is_bulk))
        self._start_calls()
        try:
            return await answer
        finally:
            if answer.cancelled():
                self._drop_done()

    def fail_waiting(self, error: Exception, *, after_s: float) -> None:
        """Fail every chunk, queued or in flight, that arrived at least `after_s` seconds ago."""
        latest = time.perf_counter() - after_s
        tickets = chain(self._interactive, self._bulk, *self._in_flight.values())
        _fail([ticket for ticket in tickets if ticket.enqueued_at <= latest], error)
        self._drop_done()

    def schedule(self) -> list[_Ticket]:
        """Take the chunks of the next call out of the queue.

        A retried chunk is sent in a call of its own.
        """
        both_wait = bool(self._interactive and self._bulk)
        first, second = self._interactive, self._bulk
        if both_wait and self._owed_to_bulk > 0:
            first, second = second, first
        if next(chain(first, second)).deaths:
            count = 1
        else:
            fresh = takewhile(lambda ticket: not ticket.deaths, chain(first, second))
            count = take_batch((ticket.tokens for ticket in fresh), budget=self.budget)
        tickets = list(islice(chain(first, second), count))
        bulk_count = len([ticket for ticket in tickets if ticket.is_bulk])
        del self._bulk[:bulk_count]
        del self._interactive[: count - bulk_count]
        if both_wait:
            self._settle_debt(tickets)
        return tickets

    def _settle_debt(self, tickets: Sequence[_Ticket]) -> None:
        sent = sum(ticket.tokens for ticket in tickets)
        bulk = sum(ticket.tokens for ticket in tickets if ticket.is_bulk)
        owed = self._owed_to_bulk + self._bulk_share * sent - bulk
        self._owed_to_bulk = min(max(owed, -self.budget), self.budget)

    def _enqueue(self, ticket: _Ticket) -> None:
        waiting = self._bulk if ticket.is_bulk else self._interactive
        insort(waiting, ticket, key=attrgetter("virtual_start"))

    def _start_calls(self) -> None:
        while (self._interactive or self._bulk) and len(self._in_flight) < self.max_in_flight:
            tickets = self.schedule()
            task = asyncio.create_task(self._run(tickets), context=Context())
            self._in_flight[task] = tickets
            task.add_done_callback(self._call_ended)
            for ticket in tickets:
                ticket.answer.add_done_callback(partial(_cancel_if_unwanted, task, tickets))

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self._start_calls()

    async def _run(self, tickets: Sequence[_Ticket]) -> None:
        try:
            results = await self._call([ticket.chunk for ticket in tickets])
        except ReplicaDiedError as error:
            self._note_death(tickets, error)
            await self._send_again(tickets)
        except ReplicaRejectedError as error:
            expired = [t for t in tickets if t.note_rejection() > self._wait_timeout_s]
            _fail(expired, error)
            await self._send_again(tickets)
        except Exception as error:
            _fail(tickets, error)
        else:
            now = time.perf_counter()
            for ticket, result in zip(tickets, results, strict=True):
                if not ticket.answer.done():
                    queue_s = max(now - ticket.enqueued_at - result.inference_s, 0.0)
                    ticket.answer.set_result(Answered(result, now, queue_s))

    def _note_death(self, tickets: Sequence[_Ticket], error: ReplicaDiedError) -> None:
        for ticket in tickets:
            ticket.note_death()
            if ticket.deaths >= self._max_attempts:
                _fail([ticket], error)
            elif not ticket.answer.done():
                self._on_retry()

    async def _send_again(self, tickets: Sequence[_Ticket]) -> None:
        """Pause, then queue the chunks whose callers still wait.

        The call counts as in flight during the pause.
        """
        await self._pause()
        for ticket in tickets:
            if not ticket.answer.done():
                self._enqueue(ticket)

    def _drop_done(self) -> None:
        self._interactive = [ticket for ticket in self._interactive if not ticket.answer.done()]
        self._bulk = [ticket for ticket in self._bulk if not ticket.answer.done()]


def _fail(tickets: Sequence[_Ticket], error: Exception) -> None:
    for ticket in tickets:
        if not ticket.answer.done():
            ticket.answer.set_exception(error)


def _cancel_if_unwanted(task: asyncio.Task[None], tickets: Sequence[_Ticket], _: object) -> None:
    """Cancel a call once no caller waits for any of its chunks."""
    if all(ticket.answer.done() for ticket in tickets):
        task.cancel()
