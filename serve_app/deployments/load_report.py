"""A replica's load report for autoscaling: how busy the replica was, and how much work is pending.

Most work waits in the ingress. Each call therefore carries the backlog of the ingress replica that
makes it, which is the number of tokens that wait there. This module does not depend on Ray or on the
encoder.
"""

import math
import time
from collections.abc import Callable

from serve_app.deployments.autoscaling import BUSY, WAITING_S

# A reported backlog expires after this many seconds, or after this many times the duration of the last
# batch if that is longer. Otherwise, the report of an ingress replica that died would count forever.
_BACKLOG_S, _BACKLOG_BATCHES = 10.0, 4
# Time constant of the throughput average, in seconds of inference.
_MEMORY_S = 10.0


class LoadReport:
    """Collects one replica's load.

    Args:
        busy_seconds: the total seconds that the model's thread has been busy until now.
        clock: returns the time in seconds.
    """

    def __init__(
        self, busy_seconds: float = 0.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        # The time of the last report and the number of waiting tokens, by ingress replica.
        self._backlogs: dict[str, tuple[float, int]] = {}
        self._tokens = self._seconds = self._batch_s = 0.0
        self._since, self._busy_seconds = clock(), busy_seconds

    def computed(self, tokens: int, seconds: float) -> None:
        """Count a finished batch.

        Args:
            tokens: the number of tokens in the batch, without padding.
            seconds: the inference time of the batch.
        """
        self._batch_s = seconds
        kept = math.exp(-seconds / _MEMORY_S)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + seconds

    def record_backlog(self, caller: str, tokens: int) -> None:
        """Record how many tokens wait in an ingress replica."""
        self._backlogs[caller] = (self._clock(), tokens)

    def callers(self) -> tuple[str, ...]:
        """Return the ids of the ingress replicas that have reported recently."""
        self._drop_expired()
        return tuple(self._backlogs)

    def _drop_expired(self) -> None:
        now = self._clock()
        expires_s = max(_BACKLOG_S, _BACKLOG_BATCHES * self._batch_s)
        self._backlogs = {
            name: (reported_at, tokens)
            for name, (reported_at, tokens) in self._backlogs.items()
            if now - reported_at < expires_s
        }

    def report(self, busy_seconds: float) -> dict[str, float]:
        """Return the input of `WorkPolicy`.

        Args:
            busy_seconds: the total seconds that the model's thread has been busy until now.

        Returns:
            `busy`: the fraction of the time since the last report, 0 to 1, that the model's thread
            was busy.
            `waiting_s`: the work that waits in all ingress replicas, in seconds of one replica's time.
        """
        now = self._clock()
        elapsed, computed = now - self._since, busy_seconds - self._busy_seconds
        self._since, self._busy_seconds = now, busy_seconds
        self._drop_expired()
        tokens = sum(tokens for _, tokens in self._backlogs.values())
        return {
            BUSY: min(max(computed / elapsed, 0.0), 1.0) if elapsed > 0 else 0.0,
            WAITING_S: tokens * self._seconds / self._tokens if self._tokens else 0.0,
        }
