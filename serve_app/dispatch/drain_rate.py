"""The rate at which pending units finish. The expected wait and `Retry-After` are derived from it.

A unit is a token of a model's queue, or a request of an ingress replica. The rate covers roughly the
last ten seconds of work. Each moment is weighted by the number of units that were pending at that
time, so that a model with little to do does not look slow. This module does not depend on HTTP,
models or Ray.
"""

import math
import random
import time
from collections.abc import Callable

# Time constant of the moving average, in seconds of work. Older work weighs less than 1/e.
_MEMORY_S = 10.0
# The rate is used once it has been measured for this many seconds. Seconds with fewer pending units
# than now count less, in proportion.
_LEAST_KNOWN_S = 0.25
# Upper bound of the wait, in seconds. While nothing finishes, the measured wait grows without limit.
_LONGEST_S = 3600.0
# Bounds of `Retry-After`, in seconds, and its jitter, as a fraction. The jitter keeps clients from
# returning all at the same moment.
_LEAST_RETRY_S, _MOST_RETRY_S, _JITTER = 1.0, 60.0, 0.25


class DrainRate:
    """The measured rate at which pending units finish.

    Args:
        unknown_s: the wait to report until a rate has been measured, in seconds.
        clock: returns the time in seconds.
    """

    def __init__(self, *, unknown_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._unknown_s = unknown_s
        self._clock = clock
        # The last time that units finished, or that units became pending when none were.
        self._since = 0.0
        # The number of finished units, and the seconds that they took. Both are weighted by the
        # number of pending units, and both decay with the time constant `_MEMORY_S`.
        self._finished = 0.0
        self._seconds = 0.0

    def start(self) -> None:
        """Start measuring: units are pending from now on, and none were before."""
        self._since = self._clock()

    def finish(self, units: int, *, pending: int) -> None:
        """Count finished units.

        Args:
            units: the number of finished units.
            pending: the number of units that were pending until now, including the finished ones.
        """
        finished, self._seconds = self._until_now(pending)
        self._finished = finished + units * pending
        self._since = self._clock()

    def wait_s(self, pending: int) -> float:
        """Return the seconds until all pending units are finished; at most one hour."""
        if not pending:
            return 0.0
        if self._seconds < pending * _LEAST_KNOWN_S:
            return self._unknown_s
        finished, seconds = self._until_now(pending)
        least = pending * seconds / _LONGEST_S
        return pending * seconds / finished if finished > least else _LONGEST_S

    def retry_after_s(self, pending: int) -> float:
        """Return the seconds after which a client whose request was rejected should retry."""
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret
        return min(max(self.wait_s(pending) * jitter, _LEAST_RETRY_S), _MOST_RETRY_S)

    def _until_now(self, pending: int) -> tuple[float, float]:
        """Return the weighted sums, extended by the time since units last finished."""
        kept = math.exp((self._since - self._clock()) / _MEMORY_S)
        return self._finished * kept, self._seconds * kept + _MEMORY_S * (1 - kept) * pending
