"""The arithmetic of token budgets, which the queue, the gate and the chunks of a request share.

Pure functions over lengths.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def take_batch(costs: Iterable[int], *, budget: int) -> int:
    """Return how many leading costs fit the budget together; at least one, so that a queue always moves."""
    count = total = 0
    for cost in costs:
        total += cost
        if count and total > budget:
            break
        count += 1
    return count


def split_by_budget(lengths: npt.NDArray[np.int32], *, budget: int) -> list[slice]:
    """Cut inputs, in their order, into runs whose tokens fit the budget; a longer input stands alone.

    Args:
        lengths: tokens of each input, int32 [inputs].
        budget: most tokens in a run.

    Returns:
        Slices that cover every input once, in order.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    runs: list[slice] = []
    start = 0
    while start < len(lengths):
        taken = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, taken + budget, side="right"))
        stop = max(stop, start + 1)
        runs.append(slice(start, stop))
        start = stop
    return runs
