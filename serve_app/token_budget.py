"""Token budget arithmetic, shared by the ingress's queue, the replicas' gate and the code that splits requests.

The functions are pure: they only read numbers of tokens.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def take_batch(costs: Iterable[int], *, budget: int) -> int:
    """Return how many of the first costs fit the budget together.

    The first cost always counts as fitting, so that a queue never stalls. The function stops reading
    `costs` at the first one that does not fit.
    """
    count = total = 0
    for cost in costs:
        total += cost
        if count and total > budget:
            break
        count += 1
    return count


def split_by_budget(lengths: npt.NDArray[np.int32], *, budget: int) -> list[slice]:
    """Split inputs into runs of consecutive inputs that fit the budget.

    An input that exceeds the budget is a run of its own.

    Args:
        lengths: number of tokens in each input, int32 [inputs].
        budget: maximum number of tokens in a run.

    Returns:
        Slices that cover every input once, in order.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    runs: list[slice] = []
    start = 0
    while start < len(lengths):
        tokens_before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, tokens_before + budget, side="right"))
        stop = max(stop, start + 1)
        runs.append(slice(start, stop))
        start = stop
    return runs
