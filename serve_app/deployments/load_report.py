"""One replica's load report for autoscaling: how busy it was, and how much work is waiting.

Most work waits in the ingress, so the ingress replicas report their backlogs whenever they poll the
model's replicas. Knows nothing of Ray or of the model.
"""

import math
import time
from collections.abc import Callable

from serve_app.deployments.autoscaling import BUSY, WAITING_S

# A reported backlog expires after this long. Ingress replicas report every two seconds while tokens
# are pending.
_BACKLOG_S = 6.0
# Time constant of the throughput average, in seconds of inference.
_MEMORY_S = 10.0


class LoadReport:
    """Collects one replica's load.

    Args:
        busy_seconds: the busy seconds of the model's thread so far.
        clock: returns the time in seconds.
    """

    def __init__(
        self, busy_seconds: float = 0.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._backlogs: dict[str, tuple[float, int]] = {}  # time and tokens, by ingress replica
        self._tokens = self._seconds = 0.0
        self._since, self._busy_seconds = clock(), busy_seconds

    def computed(self, tokens: int, seconds: float) -> None:
        """Count a finished batch.

        Args:
            tokens: its tokens, without padding.
            seconds: its inference time.
        """
        kept = math.exp(-seconds / _MEMORY_S)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + seconds

    def record_backlog(self, caller: str, tokens: int) -> None:
        """Record how many tokens are pending in an ingress replica."""
        self._drop_expired()
        self._backlogs[caller] = (self._clock(), tokens)

    def others_waiting(self, caller: str) -> int:
        """Return the number of ingress replicas with pending tokens, other than `caller`."""
        self._drop_expired()
        others = [name for name, (_, tokens) in self._backlogs.items() if tokens and name != caller]
        return len(others)

    def _drop_expired(self) -> None:
        now = self._clock()
        self._backlogs = {
            name: (reported_at, tokens)
            for name, (reported_at, tokens) in self._backlogs.items()
            if now - reported_at < _BACKLOG_S
        }

    def report(self, busy_seconds: float) -> dict[str, float]:
        """Return the input of `WorkPolicy`.

        Args:
            busy_seconds: the busy seconds of the model's thread since it started.

        Returns:
            `busy`: the busy share of the time since the last report, 0 to 1;
            `waiting_s`: the pending tokens of all ingress replicas, as seconds of work.
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
