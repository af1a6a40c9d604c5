"""Whether more may be accepted: the units that are pending, and the limit they count against.

The units of a model are tokens, those of an ingress replica are requests. Knows nothing of HTTP, models or Ray.
"""

import time
from collections.abc import Callable

from serve_app.dispatch.drain_rate import DrainRate

# Bulk may fill this share of the limit. A single bulk request of any size is accepted while no bulk is pending and no
# more than the second share of the limit is filled.
_BULK_SHARE, _BULK_ALONE_SHARE = 0.75, 0.5


class Admission:
    """Units that were accepted and are not finished.

    Several ingress replicas can share one limit: each admits an equal part of it, as each gets an equal part of the
    work done.

    Args:
        limit: most pending units; None for no limit. May change at any time.
        unknown_s: the wait while no rate is known, in seconds.
        clock: the time in seconds.

    Attributes:
        units: the pending units.
        sharers: how many ingress replicas share the limit, this one included.
    """

    def __init__(
        self, *, limit: int | None, unknown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.units = 0
        self.sharers = 1
        self._bulk_units = 0
        self._drain_rate = DrainRate(unknown_s=unknown_s, clock=clock)

    def has_room(self, units: int, *, is_bulk: bool = False) -> bool:
        """Return whether `units` more fit. An empty queue takes any amount, unless the limit is 0.

        Pending bulk takes no room from interactive units, which go first; interactive units take room from bulk.
        """
        if self.limit is None:
            return True
        limit = self.limit / self.sharers
        if is_bulk:
            if not self._bulk_units and self.units <= limit * _BULK_ALONE_SHARE:
                return True
            return self.units + units <= limit * _BULK_SHARE
        interactive = self.units - self._bulk_units
        if not interactive:
            return limit > 0
        return interactive + units <= limit

    @property
    def remaining(self) -> int:
        """How many interactive units fit; 0 without a limit."""
        if self.limit is None:
            return 0
        return max(self.limit // self.sharers - self.units + self._bulk_units, 0)

    def add(self, units: int, *, is_bulk: bool = False) -> None:
        """Accept units."""
        if not self.units:
            self._drain_rate.start()
        self.units += units
        if is_bulk:
            self._bulk_units += units

    def finish(self, units: int, *, is_bulk: bool = False) -> None:
        """Remove units that are finished, and count them in the drain rate."""
        self._drain_rate.finish(units, pending=self.units)
        self.drop(units, is_bulk=is_bulk)

    def drop(self, units: int, *, is_bulk: bool = False) -> None:
        """Remove units that failed, or whose client has left."""
        self.units -= units
        if is_bulk:
            self._bulk_units -= units

    @property
    def wait_s(self) -> float:
        """Seconds until all pending units are finished; one hour at most."""
        return self._drain_rate.wait_s(self.units)

    @property
    def retry_after_s(self) -> float:
        """Seconds after which a refused client should retry."""
        return self._drain_rate.retry_after_s(self.units)
