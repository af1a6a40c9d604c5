"""The gate in front of the model: admits calls oldest first, one token budget at a time.

Theory of operation. `@serve.batch` closes a batch as soon as it can, whether or not the model is
free, and a closed batch cannot grow. Calls therefore wait at this gate instead. The calls of one
admission enter `@serve.batch` together and form one batch. A call is in one of three states:

- *Waiting*: it is in the queue, in order of arrival.
- *Inside*: it was admitted, and is in `@serve.batch` or being computed.
- *Done*: it has left, or was cancelled.

An admission is open until the last of its calls has left. `open` runs whenever a call arrives, an
admission ends or the budget changes, and decides by the number of open admissions:

- None: the model is free. The gate admits the first calls that fit one budget, full batch or not.
- One: the gate admits one batch ahead, but only if at least one budget of tokens is waiting. Later
  arrivals could not join that batch anyway, and it is ready when the model becomes free. Fewer
  tokens keep waiting, so that later arrivals can join them.
- Two: every call waits.

Invariants:

- Calls are admitted in order of arrival.
- At most two admissions are open. Each holds at most one budget of tokens, or a single larger call.
- No call waits while no admission is open.
- A cancelled call is never admitted and never keeps an admission open. Its ticket can stay in the
  queue until its task runs again, so `open` drops such tickets before it admits. A call that is
  cancelled after its admission, but before its task runs, leaves its admission at once.

Plain asyncio on one loop. Knows nothing of Ray or of the model.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serve_app.token_budget import take_batch


@dataclass(slots=True)
class _Admission:
    """Calls that were admitted together."""

    calls_inside: int


@dataclass(slots=True, eq=False)
class _Ticket:
    tokens: int
    admission: asyncio.Future[_Admission] = field(repr=False)


class Gate:
    """Admits calls to the model, one token budget at a time.

    Args:
        budget: maximum tokens in one admission; a larger call is admitted alone.
    """

    def __init__(self, *, budget: int) -> None:
        self.budget = budget
        self.queued_tokens = 0
        self._waiting: deque[_Ticket] = deque()
        # At most two: one being computed and one ahead.
        self._open_admissions = 0

    @property
    def queued_chunks(self) -> int:
        """The number of waiting calls."""
        return len(self._waiting)

    @asynccontextmanager
    async def enter(self, tokens: int) -> AsyncIterator[None]:
        """Wait for admission, and stay inside the gate for the duration of the context.

        A call that is cancelled leaves the queue or its admission at once.
        """
        admission = await self._wait(tokens)
        try:
            yield
        finally:
            self._leave(admission)

    async def _wait(self, tokens: int) -> _Admission:
        ticket = _Ticket(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        self.queued_tokens += tokens
        self.open()
        try:
            return await ticket.admission
        except asyncio.CancelledError:
            if ticket.admission.cancelled():
                self._forget_cancelled()
            else:  # admitted and cancelled before this task ran again
                self._leave(ticket.admission.result())
            raise

    def _leave(self, admission: _Admission) -> None:
        admission.calls_inside -= 1
        if not admission.calls_inside:
            self._open_admissions -= 1
            self.open()

    def open(self) -> None:
        """Admit waiting calls as far as the rules allow."""
        if not self._may_admit():
            return  # dropping cancelled tickets cannot change that: it only makes the queue shorter
        self._forget_cancelled()
        while self._may_admit():
            count = take_batch((ticket.tokens for ticket in self._waiting), budget=self.budget)
            admission = _Admission(count)
            self._open_admissions += 1
            for _ in range(count):
                ticket = self._waiting.popleft()
                self.queued_tokens -= ticket.tokens
                ticket.admission.set_result(admission)

    def _may_admit(self) -> bool:
        if not self._waiting:
            return False
        if not self._open_admissions:
            return True
        return self._open_admissions == 1 and self.queued_tokens >= self.budget

    def _forget_cancelled(self) -> None:
        """Drop cancelled tickets: a cancelled future cannot be resolved."""
        self._waiting = deque(t for t in self._waiting if not t.admission.cancelled())
        self.queued_tokens = sum(ticket.tokens for ticket in self._waiting)
