"""Which jobs go to a model next, and together: oldest first, one token budget a call, a few calls at once.

There are two lanes. Bulk is overtaken by what somebody waits for, but of all that is sent while both wait it gets a
share. A lane's order is that of turns, which for most jobs is when they came.

What waits is not frozen: a call that may start takes along all that fits its budget by then, whoever asked for it, so
that under load a call carries a whole batch and the cost of a call is shared. With no other call under way a job goes
at once. A job whose replica died goes again, alone and marked: it may be what the replica died of. A call belongs to
all whose jobs it carries, so it runs in the context of none: what Ray Serve finds begun in a request's context it ends
with that request.

Plain asyncio on one loop. Knows nothing of Ray or of the model.
"""

import asyncio
import time
from bisect import insort
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, takewhile
from operator import attrgetter

from serve_app.messages import EmbedJob, EmbedResult
from serve_app.token_budget import take_batch

Call = Callable[[Sequence[EmbedJob]], Awaitable[Sequence[EmbedResult]]]


class LostCallError(Exception):
    """A call's replica died; what it carried may be sent again."""


class NotNowError(Exception):
    """A call's replica did not take it now; nothing is said about what it carried."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A job's result, when it came, and the seconds that it waited: here, on its way, and in the replica.

    Attributes:
        result: from the replica.
        at: by `time.perf_counter`.
        queue_s: from when the job was given to be sent, less the batch that held it.
    """

    result: EmbedResult
    at: float
    queue_s: float


@dataclass(slots=True, eq=False)
class _Ticket:
    job: EmbedJob
    answer: asyncio.Future[Answered]
    since: float
    turn: float
    is_bulk: bool
    losses: int = 0
    put_off_since: float | None = None

    def lost(self) -> None:
        """Note that its replica died."""
        self.losses += 1
        self.put_off_since = None
        self.job = replace(self.job, is_suspect=True)

    def put_off(self) -> float:
        """Note that its replica did not take it now; return for how many seconds that has gone on."""
        now = time.perf_counter()
        if self.put_off_since is None:
            self.put_off_since = now
        return now - self.put_off_since


class Sender:
    """A queue of jobs before the calls to a model's replicas.

    Args:
        call: makes one call; raises `LostCallError` when its replica died, `NotNowError` when it should go again in
            a moment; anything else fails the jobs.
        budget: most tokens in a call; a job that is larger goes alone. May be set anew at any time.
        calls_at_once: most calls under way; may be set anew at any time.
        bulk_share: least share of the tokens that are bulk's while both lanes wait.
        attempts: how often a job may be lost.
        patience_s: how long a job may be put off by `NotNowError`.
        lost: called for each job that is sent again.
        pause: waits before a job is sent again.
    """

    def __init__(
        self,
        call: Call,
        *,
        budget: int,
        calls_at_once: int,
        bulk_share: float,
        attempts: int,
        patience_s: float,
        lost: Callable[[], None],
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        self.budget = budget
        self.calls_at_once = calls_at_once
        self._call = call
        self._bulk_share = bulk_share
        self._attempts = attempts
        self._patience_s = patience_s
        self._lost = lost
        self._pause = pause
        self._lanes: dict[bool, list[_Ticket]] = {False: [], True: []}
        self._owed_to_bulk = 0.0  # tokens
        self._under_way: dict[asyncio.Task[None], list[_Ticket]] = {}

    async def send(
        self, job: EmbedJob, *, is_bulk: bool = False, turn: float | None = None
    ) -> Answered:
        """Return a job's result; a caller that is cancelled leaves at once and holds up nobody.

        Args:
            job: what is sent.
            is_bulk: whether others may overtake it.
            turn: when it counts as come, by `time.perf_counter`; without it, now.

        Raises:
            LostCallError: every replica that was given the job died.
            NotNowError: no replica took it for too long.
            Exception: what the call raised, or what `give_up` was given.
        """
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        now = time.perf_counter()
        ticket = _Ticket(job, answer, now, now if turn is None else turn, is_bulk)
        self._queue(ticket)
        self._start_calls()
        try:
            return await answer
        finally:
            if answer.cancelled():
                self._forget_done()

    def give_up(self, error: Exception, *, after_s: float) -> None:
        """Fail all jobs that were given to be sent so long ago, whether they wait here or in a call."""
        last = time.perf_counter() - after_s
        tickets = chain(*self._lanes.values(), *self._under_way.values())
        _fail([ticket for ticket in tickets if ticket.since <= last], error)
        self._forget_done()

    def _queue(self, ticket: _Ticket) -> None:
        insort(self._lanes[ticket.is_bulk], ticket, key=attrgetter("turn"))

    def _start_calls(self) -> None:
        while any(self._lanes.values()) and len(self._under_way) < self.calls_at_once:
            tickets = self._take()
            task = asyncio.create_task(self._run(tickets), context=Context())
            self._under_way[task] = tickets
            task.add_done_callback(self._call_ended)
            for ticket in tickets:
                ticket.answer.add_done_callback(partial(_end_if_left, task, tickets))

    def _take(self) -> list[_Ticket]:
        """Take the jobs of the next call; one that was lost before goes alone."""
        both_wait = all(self._lanes.values())
        bulk_first = not self._lanes[False] or (both_wait and self._owed_to_bulk > 0)
        if next(self._in_order(bulk_first)).losses:
            count = 1
        else:
            fresh = takewhile(lambda ticket: not ticket.losses, self._in_order(bulk_first))
            count = take_batch((t.job.inputs.tokens for t in fresh), budget=self.budget)
        tickets = list(islice(self._in_order(bulk_first), count))
        for is_bulk, lane in self._lanes.items():
            del lane[: sum(ticket.is_bulk == is_bulk for ticket in tickets)]
        if both_wait:
            owed = self._owed_to_bulk + sum(
                (self._bulk_share - ticket.is_bulk) * ticket.job.inputs.tokens for ticket in tickets
            )
            # For what was long ago neither lane has to make good more than a call.
            self._owed_to_bulk = min(max(owed, -self.budget), self.budget)
        return tickets

    def _in_order(self, bulk_first: bool) -> Iterator[_Ticket]:  # noqa: FBT001  # private
        return chain(self._lanes[bulk_first], self._lanes[not bulk_first])

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._start_calls()

    async def _run(self, tickets: Sequence[_Ticket]) -> None:
        try:
            results = await self._call([ticket.job for ticket in tickets])
        except LostCallError as error:
            self._note_loss(tickets, error)
            await self._send_again(tickets)
        except NotNowError as error:
            _fail([ticket for ticket in tickets if ticket.put_off() > self._patience_s], error)
            await self._send_again(tickets)
        except Exception as error:
            _fail(tickets, error)
        else:
            now = time.perf_counter()
            for ticket, result in zip(tickets, results, strict=True):
                if not ticket.answer.done():
                    queue_s = max(now - ticket.since - result.inference_s, 0.0)
                    ticket.answer.set_result(Answered(result, now, queue_s))

    def _note_loss(self, tickets: Sequence[_Ticket], error: LostCallError) -> None:
        for ticket in tickets:
            ticket.lost()
            if ticket.losses >= self._attempts:
                _fail([ticket], error)
            elif not ticket.answer.done():
                self._lost()

    async def _send_again(self, tickets: Sequence[_Ticket]) -> None:
        """Put back what somebody still waits for, after a pause in which the call keeps its place."""
        await self._pause()
        for ticket in tickets:
            if not ticket.answer.done():
                self._queue(ticket)

    def _forget_done(self) -> None:
        for lane in self._lanes.values():
            lane[:] = [ticket for ticket in lane if not ticket.answer.done()]


def _fail(tickets: Sequence[_Ticket], error: Exception) -> None:
    for ticket in tickets:
        if not ticket.answer.done():
            ticket.answer.set_exception(error)


def _end_if_left(task: asyncio.Task[None], tickets: Sequence[_Ticket], _: object) -> None:
    """End a call that nobody waits for any more."""
    if all(ticket.answer.done() for ticket in tickets):
        task.cancel()
