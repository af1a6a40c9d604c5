"""Splits inputs by a token budget: a request's into chunks, and a batch's into forward passes."""

import numpy as np
import numpy.typing as npt


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
