"""The arithmetic of batches: what one costs, what fits a budget, how to cut a job.

Pure functions over lengths. Knows nothing about queues, clocks, Ray or tensors.
"""

from collections.abc import Iterable, Iterator

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


def padded_batches(
    lengths: npt.NDArray[np.int32], *, max_batch_tokens: int
) -> Iterator[npt.NDArray[np.intp]]:
    """Cut inputs into padded batches: sorted by length, each within the budget of padded tokens.

    Longest first, so that a batch that does not fit the memory fails at once and not after the others.

    Args:
        lengths: tokens of each input, int32 [inputs].
        max_batch_tokens: most padded tokens (longest length times inputs) in a batch; an input that is longer alone
            makes a batch of its own.

    Yields:
        The indices of one batch's inputs, longest first.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(max_batch_tokens // longest, 1)
        yield order[start:stop]
        start = stop


def pad(
    ids: npt.NDArray[np.int32],
    starts: npt.NDArray[np.intp],
    lengths: npt.NDArray[np.int32],
    *,
    pad_id: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lay inputs of one buffer under each other, filled up on the right to the longest.

    Args:
        ids: token ids of many inputs, one after the other, int32.
        starts: where in `ids` each input of this batch starts, [inputs].
        lengths: its tokens, at least one, [inputs].
        pad_id: what fills up.

    Returns:
        The ids and the attention mask (1 for a token, 0 for padding), both int64 [inputs, longest length].
    """
    columns = np.arange(int(lengths.max()))
    mask = columns < lengths[:, None]
    # Reading past an input's end is harmless where the mask hides it; past the buffer's end it is kept inside.
    places = np.minimum(starts[:, None] + columns, len(ids) - 1)
    return np.where(mask, ids[places], pad_id).astype(np.int64), mask.astype(np.int64)
