"""Admission control: counts pending units against a limit.

A unit is a token of a model's queue, or a request of an ingress replica. A pending unit was accepted
and is not finished. This module does not depend on HTTP, models or Ray.
"""

import time
from collections.abc import Callable

from serve_app.dispatch.drain_rate import DrainRate

# Bulk requests may fill the limit up to the first of these fractions. A bulk request of any size is
# also admitted if no bulk request is pending and at most the second fraction of the limit is filled.
# Otherwise, steady small traffic could forever keep out a request that is larger than the limit.
_BULK_SHARE, _BULK_ALONE_SHARE = 0.75, 0.5


class Admission:
    """Counts the pending units of one model or one ingress replica.

    Several ingress replicas can share one limit. Each of them admits an equal part of the limit,
    because each of them gets an equal part of the model's throughput.

    Args:
        limit: maximum number of pending units; None for no limit. May change at any time.
        unknown_s: the wait to report until a drain rate has been measured, in seconds.
        clock: returns the time in seconds.

    Attributes:
        units: the number of pending units.
        sharers: the number of ingress replicas that share the limit, including this one.
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
        """Return whether this many more units fit.

        - Interactive units: only the pending interactive units count, because interactive requests
          go first. If there are none, any number of units fits, unless the limit is 0.
        - Bulk units: all pending units count; see `_BULK_SHARE` and `_BULK_ALONE_SHARE`.
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
        """The number of interactive units that fit in addition to the pending ones; 0 without a limit."""
        if self.limit is None:
            return 0
        return max(self.limit // self.sharers - self.units + self._bulk_units, 0)

    def add(self, units: int, *, is_bulk: bool = False) -> None:
        """Count units as pending."""
        if not self.units:
            self._drain_rate.start()
        self.units += units
        if is_bulk:
            self._bulk_units += units

    def finish(self, units: int, *, is_bulk: bool = False) -> None:
        """Remove finished units and count them in the drain rate."""
        self._drain_rate.finish(units, pending=self.units)
        self.drop(units, is_bulk=is_bulk)

    def drop(self, units: int, *, is_bulk: bool = False) -> None:
        """Remove units that failed or whose client disconnected. The drain rate does not count them."""
        self.units -= units
        if is_bulk:
            self._bulk_units -= units

    @property
    def wait_s(self) -> float:
        """Seconds until all pending units are finished; at most one hour."""
        return self._drain_rate.wait_s(self.units)

    @property
    def retry_after_s(self) -> float:
        """Seconds after which a client whose request was rejected should retry."""
        return self._drain_rate.retry_after_s(self.units)
