"""What was accepted and is not done yet: whether there is room for more, and how long until it is worked off.

Counts units, of which a model's are tokens and an ingress's are requests. The wait is what is measured: what is there,
over how fast it went lately while about as much was there; a model that has little to do is not slow. Knows nothing of
HTTP, models or Ray.
"""

import math
import random
import time
from collections.abc import Callable

# How far back "lately" reaches, in seconds of work: what is older weighs less than a third.
_MEMORY_S = 10.0
# For how long so much has to have been there before anything is known of its pace.
_SEEN_S = 0.25
# Where nothing is done for long, the pace of lately tends to none, and the wait beyond all measure.
_LONGEST_S = 3600.0
# Who was refused is told to wait from a second to a minute, each a little differently: not all shall come back at once.
_LEAST_S, _MOST_S, _JITTER = 1.0, 60.0, 0.25
# Bulk may fill so much of the queue. Where less is filled, and none of it by bulk, there is room for one of any size.
_BULK_SHARE, _BULK_AT_REST = 0.75, 0.5


class Backlog:
    """Units that were accepted and are not done.

    Others may keep theirs under the same limit, each an equal part, as each has an equal part of the work done:
    `sharers` says how many they are, this one among them.

    Args:
        limit: most units; None for no limit. May be set anew at any time.
        unknown_s: the wait that is told where nothing is known of the pace.
        clock: the time in seconds.
    """

    def __init__(
        self, *, limit: int | None, unknown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.units = 0
        self._bulk_units = 0
        self.sharers = 1
        self._unknown_s = unknown_s
        self._clock = clock
        # When units were done last, or began to be there.
        self._since = 0.0
        # What was done and the time that it took, both weighed by how much was there, and fading with that time.
        self._done = 0.0
        self._seconds = 0.0

    def has_room(self, units: int, *, is_bulk: bool = False) -> bool:
        """Return whether there is room for so many more; where nothing is, any number finds it, under any limit but 0.

        Bulk takes none from the others, which overtake it, but they take from bulk.
        """
        if self.limit is None:
            return True
        limit = self.limit / self.sharers
        if is_bulk:
            is_at_rest = not self._bulk_units and self.units <= limit * _BULK_AT_REST
            return is_at_rest or self.units + units <= limit * _BULK_SHARE
        before = self.units - self._bulk_units
        return 0 == before < limit or before + units <= limit

    @property
    def remaining(self) -> int:
        """How many units there is room for that are not bulk; 0 without a limit, of which nothing remains either."""
        return max((self.limit or 0) // self.sharers - self.units + self._bulk_units, 0)

    def add(self, units: int, *, is_bulk: bool = False) -> None:
        """Accept units."""
        if not self.units:
            self._since = self._clock()
        self.units += units
        self._bulk_units += units * is_bulk

    def finish(self, units: int, *, is_bulk: bool = False) -> None:
        """Units are done."""
        done, self._seconds = self._until_now()
        self._done = done + units * self.units
        self._since = self._clock()
        self.drop(units, is_bulk=is_bulk)

    def drop(self, units: int, *, is_bulk: bool = False) -> None:
        """Units will not be done: they failed, or nobody waits for them any more."""
        self.units -= units
        self._bulk_units -= units * is_bulk

    @property
    def wait_s(self) -> float:
        """Seconds until all that is there now is done, at the pace of lately; an hour at most."""
        if not self.units:
            return 0.0
        if self._seconds < self.units * _SEEN_S:
            return self._unknown_s
        done, seconds = self._until_now()
        longest_done = self.units * seconds / _LONGEST_S
        return self.units * seconds / done if done > longest_done else _LONGEST_S

    @property
    def retry_after_s(self) -> float:
        """Seconds that somebody should wait who finds no room."""
        wait_s = self.wait_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret
        return min(max(wait_s, _LEAST_S), _MOST_S)

    def _until_now(self) -> tuple[float, float]:
        """Return what was done and the time that it took, with the time since."""
        kept = math.exp((self._since - self._clock()) / _MEMORY_S)
        return self._done * kept, self._seconds * kept + _MEMORY_S * (1 - kept) * self.units
