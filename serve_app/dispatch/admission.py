"""Admission control: counts units against a limit.

A unit is a token that waits in a model's queue, or a request of an ingress replica. This module does not
depend on HTTP, models or Ray.
"""

# Bulk requests may fill the limit up to the first of these fractions. A bulk request of any size is
# also admitted if no bulk request is counted and at most the second fraction of the limit is filled.
# Otherwise, steady small traffic could forever keep out a request that is larger than the limit.
_BULK_SHARE, _BULK_ALONE_SHARE = 0.75, 0.5


class Admission:
    """Counts the units of one model or one ingress replica.

    Several ingress replicas can share one limit. Each of them admits an equal part of the limit,
    because each of them gets an equal part of the model's throughput.

    Args:
        limit: maximum number of units; None for no limit. May change at any time.

    Attributes:
        units: the number of units counted now.
        sharers: the number of ingress replicas that share the limit, including this one.
    """

    def __init__(self, *, limit: int | None) -> None:
        self.limit = limit
        self.units = 0
        self.sharers = 1
        self._bulk_units = 0

    def has_room(self, units: int, *, is_bulk: bool = False) -> bool:
        """Return whether this many more units fit.

        - Interactive units: only the interactive units count, because interactive requests go first.
          If there are none, any number of units fits.
        - Bulk units: all units count; see `_BULK_SHARE` and `_BULK_ALONE_SHARE`.
        """
        if self.limit is None:
            return True
        limit = self.limit / self.sharers
        if is_bulk:
            if not self._bulk_units and self.units <= limit * _BULK_ALONE_SHARE:
                return True
            return self.units + units <= limit * _BULK_SHARE
        interactive = self.units - self._bulk_units
        return not interactive or interactive + units <= limit

    def add(self, units: int, *, is_bulk: bool = False) -> None:
        """Count more units."""
        self.units += units
        if is_bulk:
            self._bulk_units += units

    def remove(self, units: int, *, is_bulk: bool = False) -> None:
        """Count fewer units."""
        self.add(-units, is_bulk=is_bulk)
