"""What was accepted and is not done yet: whether there is room for more, and how long until it is worked off.

Counts units, of which a model's are tokens and an ingress's are requests. The wait is what is measured: what is there,
over how fast it went lately. Knows nothing of HTTP, models or Ray.
"""

import math
import random
import time
from collections.abc import Callable, Sequence

# How far back "lately" reaches, in seconds of work: what is older weighs less than a third.
_MEMORY_S = 10.0
# Where nothing is done for long, the pace of lately tends to none, and the wait beyond all measure.
_LONGEST_S = 3600.0
# Who was refused is told to wait from a second to a minute, each a little differently: not all shall come back at once.
_LEAST_S, _MOST_S, _JITTER = 1.0, 60.0, 0.25


class Backlog:
    """Units that were accepted and are not done.

    Others may keep theirs under the same limit: `elsewhere` says how many units each of them has, as far as is known.

    Args:
        limit: most units; None for no limit. May be set anew at any time.
        unknown_s: the wait that is told before anything was seen to be done.
        clock: the time in seconds.
    """

    def __init__(
        self, *, limit: int | None, unknown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.units = 0
        self.elsewhere: Sequence[int] = ()
        self._unknown_s = unknown_s
        self._clock = clock
        self._at = 0.0
        # Both fade with time, but only while there is something to do: a pause says nothing of the pace.
        self._done = 0.0
        self._seconds = 0.0

    def has_room(self, units: int, *, share: float = 1) -> bool:
        """Return whether there is room for so many more, in a share of all that there is."""
        return self.limit is None or self.units + units <= self._own(self.limit * share)

    def _own(self, limit: float) -> float:
        """Return what others leave of a limit: an equal part at least, so that none is kept out by those before it."""
        return max(limit - sum(self.elsewhere), limit / (len(self.elsewhere) + 1))

    @property
    def remaining(self) -> int:
        """How many units there is room for; 0 without a limit, of which nothing remains either."""
        return max(int(self._own(self.limit or 0)) - self.units, 0)

    def add(self, units: int) -> None:
        """Accept units."""
        self._advance()
        self.units += units

    def finish(self, units: int) -> None:
        """Units are done."""
        self._advance()
        self.units -= units
        self._done += units

    def drop(self, units: int) -> None:
        """Units will not be done: they failed, or nobody waits for them any more."""
        self._advance()
        self.units -= units

    @property
    def wait_s(self) -> float:
        """Seconds until all that is there now is done, at the pace of lately; an hour at most."""
        if not self.units:
            return 0.0
        self._advance()
        if not self._done:
            return self._unknown_s
        return min(self.units * self._seconds / self._done, _LONGEST_S)

    @property
    def retry_after_s(self) -> float:
        """Seconds that somebody should wait who finds no room."""
        wait_s = self.wait_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret
        return min(max(wait_s, _LEAST_S), _MOST_S)

    def _advance(self) -> None:
        now = self._clock()
        if self.units:
            kept = math.exp((self._at - now) / _MEMORY_S)
            self._done *= kept
            self._seconds = self._seconds * kept + _MEMORY_S * (1 - kept)
        self._at = now
