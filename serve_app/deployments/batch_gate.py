"""Who may go to the model next: oldest first, one token budget at a time.

Chunks wait here and not in `@serve.batch`, because what has entered it is frozen: it closes a batch as soon as it can,
whether or not the model is free. The gate opens for as many chunks as fit one budget when the model is free, and for one
batch ahead when a whole budget waits: such a batch is full, so nothing is lost by freezing it, and it is ready when the
model frees up. A batch that is not full stays open for late arrivals until the model is free.

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
    """Chunks that were let in together; it ends when the last of them has left."""

    chunks_inside: int


@dataclass(slots=True, eq=False)
class _Ticket:
    tokens: int
    admission: asyncio.Future[_Admission] = field(repr=False)


class Gate:
    """A queue before the model that opens one token budget at a time.

    Args:
        budget: tokens that are let in together; a chunk that is larger goes alone.
    """

    def __init__(self, *, budget: int) -> None:
        self.budget = budget
        self.queued_tokens = 0
        self._waiting: deque[_Ticket] = deque()
        # Admissions whose chunks are not all out yet: at most one running and one ahead.
        self._admitted = 0

    @property
    def queued_chunks(self) -> int:
        """Chunks that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def enter(self, tokens: int) -> AsyncIterator[None]:
        """Wait for one's turn; inside the context the chunk is with the model.

        A caller that is cancelled while it waits leaves the queue at once; one that is cancelled inside leaves its
        place to the others.
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
            else:  # let in and cancelled in one turn of the loop
                self._leave(ticket.admission.result())
            raise

    def _leave(self, admission: _Admission) -> None:
        admission.chunks_inside -= 1
        if not admission.chunks_inside:
            self._admitted -= 1
            self.open()

    def open(self) -> None:
        """Let in what may go now; called whenever a chunk comes, an admission ends, or the settings change."""
        if not self._may_admit():
            return  # nor may it without those who have gone, who can only make the queue look fuller than it is
        self._forget_cancelled()
        while self._may_admit():
            count = take_batch((ticket.tokens for ticket in self._waiting), budget=self.budget)
            admission = _Admission(count)
            self._admitted += 1
            for _ in range(count):
                ticket = self._waiting.popleft()
                self.queued_tokens -= ticket.tokens
                ticket.admission.set_result(admission)

    def _may_admit(self) -> bool:
        if not self._waiting:
            return False
        return not self._admitted or (self._admitted == 1 and self.queued_tokens >= self.budget)

    def _forget_cancelled(self) -> None:
        """Drop the tickets whose callers have gone; a future that its caller cancelled cannot be resolved."""
        self._waiting = deque(t for t in self._waiting if not t.admission.cancelled())
        self.queued_tokens = sum(ticket.tokens for ticket in self._waiting)
