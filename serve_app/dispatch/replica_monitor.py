"""Looks at all replicas of a model, again and again while there is work, and tells them how much of it waits here.

Knows nothing of what follows from what they say.
"""

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

from serve_app.dispatch.broadcast import ask_all
from serve_app.messages import ReplicaState

# Seconds between two looks, and what replicas have to answer.
_POLL_S = 2.0
# After a time without work it begins with so many, and doubles them at each look: so ingress replicas hear of each
# other soon, as a burst comes to all of them.
_FIRST_POLL_S = 0.1

# What replicas said, None from one that cannot embed, and the seconds for which none was seen that can.
OnPoll = Callable[[Sequence[ReplicaState | None], float], None]


class ReplicaMonitor:
    """The replicas of one model.

    Args:
        handle: Ray Serve's `DeploymentHandle` of the model's deployment.
        waiting_tokens: how many tokens were accepted here that are not answered yet.
        on_poll: called after each look.
        pause_s: most seconds between two looks.
    """

    def __init__(
        self, handle: Any, *, waiting_tokens: Callable[[], int], on_poll: OnPoll, pause_s: float
    ) -> None:
        self._handle = handle
        self._waiting_tokens = waiting_tokens
        self._on_poll = on_poll
        self._longest_s = self._pause_s = min(pause_s, _POLL_S)
        self._name = uuid.uuid4().hex
        self._task: asyncio.Task[None] | None = None
        self._polled_at = self._seen_at = -math.inf

    async def ask(self) -> list[ReplicaState | None]:
        """Return the state of every replica that lives, None for one that cannot embed."""
        told = (self._name, self._waiting_tokens())
        return await ask_all(self._handle, "state", *told, timeout_s=_POLL_S)

    def start(self) -> None:
        """Look until nothing waits any more; called whenever something does."""
        if self._task is not None:
            return
        now = self._seen_at = time.monotonic()  # whoever waits has waited no longer
        if now - self._polled_at > 2 * _POLL_S:
            self._pause_s = min(_FIRST_POLL_S, self._longest_s)
        # In no request's context, as the sender's calls are.
        self._task = asyncio.create_task(self._poll(), context=Context())

    async def _poll(self) -> None:
        try:
            while True:
                await asyncio.sleep(max(self._polled_at + self._pause_s - time.monotonic(), 0))
                self._pause_s = min(2 * self._pause_s, self._longest_s)
                answers = await self.ask()
                now = self._polled_at = time.monotonic()
                if any(state is not None for state in answers):
                    self._seen_at = now
                self._on_poll(answers, now - self._seen_at)
                if not self._waiting_tokens():
                    return
        finally:
            self._task = None
