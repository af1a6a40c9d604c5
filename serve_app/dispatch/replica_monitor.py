"""Poll all replicas of a model while work is pending.

A poll exchanges information in both directions: each replica returns its state, and receives the
number of pending tokens in this ingress replica. This module does not depend on how the states are
used.
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

# Seconds between two polls, and the replicas' deadline for an answer.
_POLL_S = 2.0
# After an idle time, the pause between polls is this many seconds, doubled at each poll, the first
# one included. A burst reaches all ingress replicas at the same time, and they have to
# discover each other while the burst lasts.
_FIRST_POLL_S = 0.1

# Receives the replicas' states (None for a replica that is not ready), and the seconds since a
# ready replica was last seen.
OnPoll = Callable[[Sequence[ReplicaState | None], float], None]


class ReplicaMonitor:
    """Polls the replicas of one model.

    Args:
        handle: Ray Serve's `DeploymentHandle` of the model's deployment.
        waiting_tokens: returns the number of pending tokens in this ingress replica.
        on_poll: called after each poll.
        pause_s: maximum seconds between two polls.
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
        """Return the state of every live replica; None for a replica that is not ready."""
        backlog = self._waiting_tokens()
        return await ask_all(self._handle, "state", self._name, backlog, timeout_s=_POLL_S)

    def start(self) -> None:
        """Start to poll, until no tokens are pending. Do nothing if polling has already started."""
        if self._task is not None:
            return
        now = self._seen_at = time.monotonic()  # the time without a ready replica counts from now
        if now - self._polled_at > 2 * _POLL_S:
            self._pause_s = min(_FIRST_POLL_S, self._longest_s)
        # Ray Serve cancels everything that was started in a request's context when that request ends.
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
