"""Counts pending units, and measures the rate at which they finish. `Retry-After` is derived from it.

A unit is a token that was accepted for a model, or a request of an ingress replica. The rate covers roughly the
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
    """The pending units of one model or one ingress replica, and the rate at which they finish.

    Args:
        unknown_s: the wait to report until a rate has been measured, in seconds.
        clock: returns the time in seconds.

    Attributes:
        pending: the number of pending units: accepted and not finished.
    """

    def __init__(self, *, unknown_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.pending = 0
        self._unknown_s = unknown_s
        self._clock = clock
        # The last time that units finished, or that units became pending when none were.
        self._since = 0.0
        # The number of finished units, and the seconds that they took. Both are weighted by the
        # number of pending units, and both decay with the time constant `_MEMORY_S`.
        self._finished = 0.0
        self._seconds = 0.0

    def start(self, units: int) -> None:
        """Count accepted units as pending."""
        if not self.pending:
            self._since = self._clock()
        self.pending += units

    def finish(self, units: int) -> None:
        """Remove finished units, and count them in the rate."""
        finished, self._seconds = self._until_now()
        self._finished = finished + units * self.pending
        self._since = self._clock()
        self.pending -= units

    def drop(self, units: int) -> None:
        """Remove units that failed or whose client disconnected. The rate does not count them."""
        self.pending -= units

    @property
    def wait_s(self) -> float:
        """Seconds until all pending units are finished; at most one hour."""
        if not self.pending:
            return 0.0
        if self._seconds < self.pending * _LEAST_KNOWN_S:
            return self._unknown_s
        finished, seconds = self._until_now()
        least = self.pending * seconds / _LONGEST_S
        return self.pending * seconds / finished if finished > least else _LONGEST_S

    @property
    def retry_after_s(self) -> float:
        """Seconds after which a client whose request was rejected should retry."""
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret
        return min(max(self.wait_s * jitter, _LEAST_RETRY_S), _MOST_RETRY_S)

    def _until_now(self) -> tuple[float, float]:
        """Return the weighted sums, extended by the time since units last finished."""
        kept = math.exp((self._since - self._clock()) / _MEMORY_S)
        return self._finished * kept, self._seconds * kept + _MEMORY_S * (1 - kept) * self.pending
