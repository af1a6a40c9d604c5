"""How fast pending units are finished: the wait of what is pending, and the `Retry-After` of what is refused.

The rate is that of the last ten seconds or so of work, weighted by how much was pending: a model that has little to do
is not slow. Knows nothing of HTTP, models or Ray.
"""

import math
import random
import time
from collections.abc import Callable

# The time constant of the average, in seconds of work: older work weighs less than a third.
_MEMORY_S = 10.0
# The current number of units must have been pending this long, in weighted seconds, before the rate counts as known.
_LEAST_KNOWN_S = 0.25
# While nothing is finished the rate tends to zero and the wait to infinity.
_LONGEST_S = 3600.0
# `Retry-After` is within these bounds, and differs by up to a quarter from client to client so that they do not all
# return at the same moment.
_LEAST_RETRY_S, _MOST_RETRY_S, _JITTER = 1.0, 60.0, 0.25


class DrainRate:
    """The measured rate at which pending units are finished.

    Args:
        unknown_s: the wait while no rate is known, in seconds.
        clock: the time in seconds.
    """

    def __init__(self, *, unknown_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._unknown_s = unknown_s
        self._clock = clock
        # When units were last finished, or began to be pending.
        self._since = 0.0
        # Finished units and the seconds they took, both weighted by the pending units, both fading over `_MEMORY_S`.
        self._finished = 0.0
        self._seconds = 0.0

    def start(self) -> None:
        """Note that units are pending from now on, and none were before."""
        self._since = self._clock()

    def finish(self, units: int, *, pending: int) -> None:
        """Count finished units.

        Args:
            units: how many were finished.
            pending: how many were pending until now, the finished ones included.
        """
        finished, self._seconds = self._until_now(pending)
        self._finished = finished + units * pending
        self._since = self._clock()

    def wait_s(self, pending: int) -> float:
        """Return the seconds until all pending units are finished; one hour at most."""
        if not pending:
            return 0.0
        if self._seconds < pending * _LEAST_KNOWN_S:
            return self._unknown_s
        finished, seconds = self._until_now(pending)
        least = pending * seconds / _LONGEST_S
        return pending * seconds / finished if finished > least else _LONGEST_S

    def retry_after_s(self, pending: int) -> float:
        """Return the seconds after which a refused client should retry."""
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret
        return min(max(self.wait_s(pending) * jitter, _LEAST_RETRY_S), _MOST_RETRY_S)

    def _until_now(self, pending: int) -> tuple[float, float]:
        """Return the weighted sums, with the time since the last units were finished."""
        kept = math.exp((self._since - self._clock()) / _MEMORY_S)
        return self._finished * kept, self._seconds * kept + _MEMORY_S * (1 - kept) * pending
