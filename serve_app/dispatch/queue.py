"""The queue of chunks in front of a model's replicas.

Theory of operation. Each chunk is waiting, in flight or done:

- *Waiting* chunks form one list per priority class (interactive and bulk), sorted by virtual start
  time. `Admission` counts their tokens.
- *In flight* chunks belong to a call. Whenever fewer than `max_in_flight` calls run, `schedule`
  takes the first chunks of one class that fit one token budget, but at most one chunk of each
  request. Under load, a call therefore carries a full batch. Without load, a chunk is sent at once.
  A large request that is alone is sent in calls of half a budget, so that a request that arrives
  later waits less. While at least `eager_calls` calls run, only full calls are sent: those that
  use up the budget, leave out a chunk that does not fit, or retry a chunk. Otherwise, more calls at
  once would only be smaller ones.
- A chunk is *done* when it has a result or an error, or when its request was cancelled. Then it
  leaves the queue. A call is cancelled once all its chunks are done.

The virtual clock counts the tokens that were sent. The first chunk of a request starts at the time
of its arrival. Each later chunk starts later than its predecessor, by `_PACE` times the
predecessor's tokens, so that requests that arrive later find room between the chunks of a large one:
they can take up to half of the tokens sent without delaying it, and take two thirds if they alone
could keep the replicas busy. This is start-time fair queueing in which each request is a flow. The
clock never stands still while tokens are sent, so a steady stream of new requests cannot starve an
old one.

Two events move a chunk from in flight back to waiting:

- The replica died. The chunk may have caused the death, so from now on it is sent in a call of its
  own, which is marked as a retry. After `_MAX_ATTEMPTS` deaths, the chunk fails.
- The replica rejected the call. The chunk is sent again. It fails if replicas have rejected it for
  more than `wait_timeout_s` seconds.

Interactive chunks go before bulk chunks. While chunks of both classes wait, the bulk class is owed
the fraction `bulk_share` of the tokens sent. Bulk chunks go first while this debt is positive. The
debt is limited to one call's token budget in either direction, so that a class with little traffic
cannot build up a large claim.

A call can carry chunks of several requests. It therefore runs in an empty context: Ray Serve cancels
everything that was started in a request's context when that request ends.

All methods run on one event loop. This module does not depend on Ray or on the model.
"""

import asyncio
import time
import uuid
from bisect import insort
from collections.abc import Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Protocol

from serve_app.dispatch.admission import Admission
from serve_app.dispatch.chunks import MAX_INPUTS, EmbedChunk, pack, poison_pill
from serve_app.dispatch.drain_rate import DrainRate
from serve_app.messages import EmbedCall, EmbedResult

# Embedding is idempotent, so a chunk can be sent again after its replica died. A replica holds at
# most one retry at a time. A chunk that two replicas held when they died is therefore taken for the
# cause.
_MAX_ATTEMPTS = 2
# Distance between the virtual start times of a request's chunks, in multiples of their tokens.
_PACE = 2


class ReplicaDiedError(Exception):
    """The replica handling a call died. The call's chunks can safely be sent again."""


class ReplicaRejectedError(Exception):
    """The replica cannot take the call at the moment. The call's chunks are not at fault."""


class TooManyCallsError(Exception):
    """Too many calls already wait for the replicas."""


class Caller(Protocol):
    """Makes the calls of a queue."""

    async def call(self, call: EmbedCall) -> EmbedResult:
        """Make one call.

        Raises:
            ReplicaDiedError: the replica died.
            ReplicaRejectedError: the call should be repeated.
            Exception: the call's chunks fail with this error.
        """

    async def pause(self, *, retries: int) -> None:
        """Wait before chunks are sent again, `retries` of them because their replica died."""


@dataclass(slots=True, eq=False)
class _Ticket:
    chunk: EmbedChunk
    answer: asyncio.Future[EmbedResult]
    request: int  # distinguishes the requests of this queue
    enqueued_at: float
    virtual_start: int
    is_bulk: bool
    call: asyncio.Task[None] | None = None  # while the chunk is in flight
    deaths: int = 0
    rejected_since: float | None = None

    @property
    def tokens(self) -> int:
        return self.chunk.inputs.tokens

    def settle(self, result: EmbedResult) -> None:
        if not self.answer.done():
            queue_s = time.perf_counter() - self.enqueued_at - result.inference_s
            self.answer.set_result(replace(result, queue_s=max(queue_s, 0.0)))

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def note_death(self) -> None:
        """Count the death of a replica that held the chunk. Fail the chunk if it is the cause."""
        self.deaths += 1
        self.rejected_since = None
        if self.deaths >= _MAX_ATTEMPTS and not self.answer.done():
            self.fail(poison_pill(self.chunk))

    def note_rejection(self, error: Exception, *, timeout_s: float) -> None:
        """Fail the chunk if replicas have rejected it for more than `timeout_s` seconds."""
        now = time.perf_counter()
        if self.rejected_since is None:
            self.rejected_since = now
        if now - self.rejected_since > timeout_s:
            self.fail(error)


class CallQueue:
    """The waiting chunks of one model, and its calls in flight.

    Args:
        caller: makes the calls.
        admission: counts the waiting tokens.
        drain_rate: counts the pending tokens: those of all chunks that are not done.
        budget: maximum number of tokens in a call. A larger chunk is sent in a call of its own. The
            budget may change at any time.
        bulk_share: minimum fraction of the tokens sent, 0 to 1, that are bulk while chunks of both
            classes wait.
        wait_timeout_s: seconds for which replicas may reject a chunk before the chunk fails.

    Attributes:
        max_in_flight: maximum number of concurrent calls. It may change at any time.
        eager_calls: number of concurrent calls from which on only full calls are sent. It may change
            at any time.
        name: the id that the replicas know this queue by.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        admission: Admission,
        drain_rate: DrainRate,
        budget: int,
        bulk_share: float,
        wait_timeout_s: float,
    ) -> None:
        self.budget = budget
        self.max_in_flight = self.eager_calls = 1
        self.name = uuid.uuid4().hex
        self._caller = caller
        self._admission = admission
        self._drain_rate = drain_rate
        self._bulk_share = bulk_share
        self._wait_timeout_s = wait_timeout_s
        self._interactive: list[_Ticket] = []
        self._bulk: list[_Ticket] = []
        self._owed_to_bulk = 0.0  # tokens
        self._requests = 0
        self._sent_tokens = 0  # the virtual clock
        self._in_flight: dict[asyncio.Task[None], list[_Ticket]] = {}

    async def send(
        self, chunks: Sequence[EmbedChunk], *, is_bulk: bool = False
    ) -> Sequence[EmbedResult]:
        """Return the results of a request's chunks.

        The first failure ends the request. When a request ends, what is left of it leaves the queue.

        Args:
            chunks: the chunks of one request.
            is_bulk: whether the request is bulk. Interactive chunks go before bulk chunks.

        Raises:
            InferenceError: two replicas died while they held the same chunk.
            ReplicaRejectedError: replicas rejected a chunk for more than `wait_timeout_s` seconds.
            Exception: the error raised by the call, such as `TooManyCallsError`, or passed to
                `fail_waiting`.
        """
        loop = asyncio.get_running_loop()
        now, virtual_start = time.perf_counter(), self._sent_tokens
        self._requests += 1
        answers = []
        for chunk in chunks:
            ticket = _Ticket(
                chunk, loop.create_future(), self._requests, now, virtual_start, is_bulk
            )
            ticket.answer.add_done_callback(partial(self._chunk_done, ticket))
            answers.append(ticket.answer)
            self._drain_rate.start(ticket.tokens)
            self._enqueue(ticket)
            virtual_start += _PACE * ticket.tokens
        self.start_calls()
        if len(answers) == 1:
            return [await answers[0]]
        try:
            return await asyncio.gather(*answers)
        finally:
            for answer in answers:
                answer.cancel()

    def fail_waiting(self, error: Exception, *, after_s: float) -> None:
        """Fail every chunk, waiting or in flight, that arrived at least `after_s` seconds ago."""
        latest = time.perf_counter() - after_s
        for ticket in chain(self._interactive, self._bulk, *self._in_flight.values()):
            if ticket.enqueued_at <= latest:
                ticket.fail(error)

    def start_calls(self) -> None:
        """Start as many calls as the limits allow. Call this after a limit was raised."""
        while (self._interactive or self._bulk) and len(self._in_flight) < self.max_in_flight:
            tickets = self.schedule()
            if not tickets:
                return
            task = asyncio.create_task(self._run(tickets), context=Context())
            self._in_flight[task] = tickets
            for ticket in tickets:
                ticket.call = task
            task.add_done_callback(self._call_ended)

    def schedule(self) -> list[_Ticket]:
        """Take the chunks of the next call out of the queue; none if the call can wait."""
        both_wait = bool(self._interactive and self._bulk)
        is_bulk = not self._interactive or (both_wait and self._owed_to_bulk > 0)
        waiting = self._bulk if is_bulk else self._interactive
        tickets, is_full = _fill_call(waiting, budget=self.budget)
        if len(self._in_flight) >= self.eager_calls and not is_full:
            return []
        taken = set(tickets)
        waiting[:] = [ticket for ticket in waiting if ticket not in taken]
        sent = sum(ticket.tokens for ticket in tickets)
        self._sent_tokens += sent
        self._admission.remove(sent, is_bulk=is_bulk)
        if both_wait:
            share = self._bulk_share - 1 if is_bulk else self._bulk_share
            owed = self._owed_to_bulk + share * sent
            self._owed_to_bulk = min(max(owed, -self.budget), self.budget)
        return tickets

    def _enqueue(self, ticket: _Ticket) -> None:
        ticket.call = None
        self._admission.add(ticket.tokens, is_bulk=ticket.is_bulk)
        insort(self._waiting(ticket), ticket, key=attrgetter("virtual_start"))

    def _waiting(self, ticket: _Ticket) -> list[_Ticket]:
        return self._bulk if ticket.is_bulk else self._interactive

    def _chunk_done(self, ticket: _Ticket, answer: asyncio.Future[EmbedResult]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            self._drain_rate.drop(ticket.tokens)
        else:
            self._drain_rate.finish(ticket.tokens)
        if ticket.call is None:
            self._waiting(ticket).remove(ticket)
            self._admission.remove(ticket.tokens, is_bulk=ticket.is_bulk)
        elif not _unanswered(self._in_flight.get(ticket.call, ())):
            ticket.call.cancel()

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self.start_calls()

    async def _run(self, tickets: Sequence[_Ticket]) -> None:
        died = await self._attempt(tickets)
        if unanswered := _unanswered(tickets):
            # The call counts as in flight during the pause.
            await self._caller.pause(retries=len(unanswered) if died else 0)
            for ticket in _unanswered(tickets):
                self._enqueue(ticket)

    async def _attempt(self, tickets: Sequence[_Ticket]) -> bool:
        """Make a call with these chunks. Return whether its replica died."""
        try:
            _settle(tickets, await self._caller.call(self._pack(tickets)))
        except ReplicaDiedError:
            for ticket in tickets:
                ticket.note_death()
            return True
        except ReplicaRejectedError as error:
            for ticket in tickets:
                ticket.note_rejection(error, timeout_s=self._wait_timeout_s)
        except Exception as error:
            for ticket in tickets:
                ticket.fail(error)
        return False

    def _pack(self, tickets: Sequence[_Ticket]) -> EmbedCall:
        return pack(
            [ticket.chunk for ticket in tickets],
            is_retry=bool(tickets[0].deaths),
            caller=self.name,
            waiting_tokens=self._admission.units,
        )


def _fill_call(waiting: Iterable[_Ticket], *, budget: int) -> tuple[list[_Ticket], bool]:
    """Return the chunks of one call, and whether the call is full.

    A call has at most one chunk of each request, and at most `MAX_INPUTS` inputs. A retried chunk is a
    call of its own.
    """
    tickets: list[_Ticket] = []
    requests: set[int] = set()
    tokens = inputs = 0
    for ticket in waiting:
        if ticket.request in requests:
            continue
        tokens += ticket.tokens
        inputs += len(ticket.chunk.inputs)
        if tickets and (ticket.deaths or tokens > budget or inputs > MAX_INPUTS):
            return tickets, True
        tickets.append(ticket)
        requests.add(ticket.request)
        if ticket.deaths:
            return tickets, True
    return tickets, tokens >= budget


def _settle(tickets: Sequence[_Ticket], result: EmbedResult) -> None:
    """Give each chunk its part of the call's result."""
    start = 0
    for ticket in tickets:
        stop = start + len(ticket.chunk.inputs)
        ticket.settle(result.part(start, stop))
        start = stop


def _unanswered(tickets: Sequence[_Ticket]) -> list[_Ticket]:
    return [ticket for ticket in tickets if not ticket.answer.done()]
