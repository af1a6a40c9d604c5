"""What a replica knows of the work there is for it: how busy it was, and how much waits, also in the ingress.

The ingress replicas tell now and then what waits in each of them. Knows nothing of Ray or of the model.
"""

import math
import time
from collections.abc import Callable

from serve_app.deployments.autoscaling import BUSY, WAITING_S

# What an ingress replica told counts for so long; it tells every two seconds while something waits.
_BACKLOG_S = 6.0
# How far back the pace is measured, in seconds of computing.
_MEMORY_S = 10.0


class LoadReport:
    """The account of one replica.

    Args:
        busy_seconds: seconds spent computing so far, as it is told to `report`.
        clock: the time in seconds.
    """

    def __init__(
        self, busy_seconds: float = 0.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._backlogs: dict[str, tuple[float, int]] = {}
        self._tokens = self._seconds = 0.0
        self._since, self._busy_seconds = clock(), busy_seconds

    def computed(self, tokens: int, seconds: float) -> None:
        """A batch is done: so many tokens, without padding, in so many seconds."""
        kept = math.exp(-seconds / _MEMORY_S)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + seconds

    def record_backlog(self, caller: str, tokens: int) -> None:
        """An ingress replica says how many tokens it has accepted that are not answered yet."""
        self._forget()
        self._backlogs[caller] = (self._clock(), tokens)

    def others_waiting(self, caller: str) -> int:
        """Return in how many ingress replicas besides that one something waits."""
        self._forget()
        return sum(tokens > 0 and one != caller for one, (_, tokens) in self._backlogs.items())

    def _forget(self) -> None:
        now = self._clock()
        self._backlogs = {
            one: told for one, told in self._backlogs.items() if now - told[0] < _BACKLOG_S
        }

    def report(self, busy_seconds: float) -> dict[str, float]:
        """Return what `WorkPolicy` goes by: `busy` since the last report, 0 to 1, and `waiting_s`.

        Args:
            busy_seconds: seconds spent computing since the start.
        """
        now = self._clock()
        elapsed, computed = now - self._since, busy_seconds - self._busy_seconds
        self._since, self._busy_seconds = now, busy_seconds
        self._forget()
        tokens = sum(tokens for _, tokens in self._backlogs.values())
        return {
            BUSY: min(max(computed / elapsed, 0.0), 1.0) if elapsed > 0 else 0.0,
            WAITING_S: tokens * self._seconds / self._tokens if self._tokens else 0.0,
        }
