"""Looks at a model's replicas while work is pending.

Ray Serve delivers the replicas and their states to every ingress replica, so that looking at them
costs no call. This module does not depend on how the states are used.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import Context

from serve_app.messages import RunningReplica

# Seconds between two looks.
_PERIOD_S = 0.25

# Receives the running replicas, and the seconds since one was last seen.
OnLook = Callable[[Sequence[RunningReplica], float], None]


class ReplicaMonitor:
    """Looks at the replicas of one model.

    Args:
        replicas: returns the running replicas.
        is_needed: returns whether work is pending.
        on_look: called after each look.
        period_s: seconds between two looks.
    """

    def __init__(
        self,
        replicas: Callable[[], Sequence[RunningReplica]],
        *,
        is_needed: Callable[[], bool],
        on_look: OnLook,
        period_s: float = _PERIOD_S,
    ) -> None:
        self._replicas = replicas
        self._is_needed = is_needed
        self._on_look = on_look
        self._period_s = period_s
        self._seen_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now, and repeatedly until no work is pending. Do nothing if this has already started."""
        if self._task is not None:
            return
        self._seen_at = time.monotonic()  # the time without a replica counts from now
        self._look()
        # Ray Serve cancels everything that was started in a request's context when that request ends.
        self._task = asyncio.create_task(self._look_repeatedly(), context=Context())

    async def _look_repeatedly(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._period_s)
                if not self._is_needed():
                    return
                self._look()
        finally:
            self._task = None

    def _look(self) -> None:
        replicas = self._replicas()
        now = time.monotonic()
        if replicas:
            self._seen_at = now
        self._on_look(replicas, now - self._seen_at)
