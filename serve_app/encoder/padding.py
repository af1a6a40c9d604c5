"""Cuts a batch into padded forward passes, and lays out the token ids of each forward pass.

The functions are pure. They work on NumPy arrays of lengths and ids.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

# Number of length classes into which the inputs are sorted before a batch is cut. With 64 classes,
# the search takes less than a millisecond, and an input gets at most 1/64 of the longest length in
# additional padding.
_LENGTH_CLASSES = 64

# Minimum number of tokens per stream. With MiniLM and two streams, 4 inputs of 12 tokens take the
# same time with and without streams. With more work, streams are up to 8 % faster on an idle machine,
# and 8 to 25 % faster if a different process uses a fifth of the machine.
_STREAM_TOKENS = 32

# Forward passes of fewer tokens are not halved to balance the streams: two halves of 100 tokens
# cost 4 % more than the whole.
_SMALL_PASS_TOKENS = 256


def stream_budget(
    lengths: npt.NDArray[np.int32], *, max_batch_tokens: int, streams: int
) -> int | None:
    """Return the token budget of a forward pass in a stream, padding included.

    A CPU can compute several forward passes side by side, each in a stream: a part of the cores. The
    budget is chosen so that each stream gets two forward passes, unless these would be small. If one
    stream is delayed, the other streams then take more of the work.

    Args:
        lengths: number of tokens in each input, int32 [inputs].
        max_batch_tokens: token budget of all streams together, padding included.
        streams: number of streams.

    Returns:
        The budget, or None if forward passes should run one at a time on the whole processor. That
        is the case if there is little work, or if an input is too long: longer than one stream's
        part of the work, or than one stream's part of `max_batch_tokens`.
    """
    tokens = int(lengths.sum(dtype=np.int64))
    if streams == 1 or tokens < streams * _STREAM_TOKENS:
        return None
    if int(lengths.max()) * streams > min(tokens, max_batch_tokens):
        return None
    share = -(-tokens // streams)
    return max(min(max_batch_tokens // streams, max(share // 2, min(share, _SMALL_PASS_TOKENS))), 1)


def padded_batches(
    lengths: npt.NDArray[np.int32], *, max_batch_tokens: int, pass_tokens: float
) -> Iterator[npt.NDArray[np.intp]]:
    """Cut inputs into padded batches with the lowest total cost, each within the token budget.

    The cost of a batch is the number of its padded tokens (longest length times number of inputs)
    plus `pass_tokens`. Few batches waste tokens on padding; with many batches, the fixed cost is
    paid many times. Dynamic programming finds the best cuts. The batch with the longest inputs comes
    first, so that a batch that does not fit in memory fails before the other batches run.

    Args:
        lengths: number of tokens in each input, int32 [inputs].
        max_batch_tokens: maximum number of tokens in a batch, padding included. An input that is
            longer is a batch of its own.
        pass_tokens: fixed cost of a forward pass, as the number of tokens that take the same time.

    Yields:
        The input indices of one batch, longest input first.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    descending = np.maximum(lengths[order].astype(np.int64), 1)
    for run in _cheapest_runs(descending, max_batch_tokens, pass_tokens):
        size = max(max_batch_tokens // int(descending[run.start]), 1)
        for start in range(run.start, run.stop, size):
            yield order[start : min(start + size, run.stop)]


def _cheapest_runs(
    descending: npt.NDArray[np.int64], max_batch_tokens: int, pass_tokens: float
) -> list[slice]:
    """Cut inputs, sorted by length, into runs. All batches of a run are padded to the same length.

    Let `least[n]` be the lowest cost of the inputs in the first n length classes. For every n, the
    last run starts at the class that minimizes the cost before it plus its own cost:
    `least[n] = min over i < n of least[i] + cost of a run over the classes i to n - 1`.
    """
    if not len(descending):
        return []
    # A cut falls between length classes only, so the search stays small for any number of inputs.
    step = max(int(descending[0]) // _LENGTH_CLASSES, 1)
    classes = -(-descending // step)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1])
    ends = np.append(starts[1:], len(descending))
    longest = descending[starts]
    inputs_in_batch = np.maximum(max_batch_tokens // longest, 1)
    least = np.zeros(len(starts) + 1)
    last_start = np.zeros(len(starts) + 1, np.intp)  # the class at which the last run starts
    for cut in range(1, len(starts) + 1):
        inputs = ends[cut - 1] - starts[:cut]
        passes = -(-inputs // inputs_in_batch[:cut])
        costs = least[:cut] + inputs * longest[:cut] + passes * pass_tokens
        last_start[cut] = np.argmin(costs)
        least[cut] = costs[last_start[cut]]
    runs = []
    cut = len(starts)
    while cut:
        first = int(last_start[cut])
        runs.append(slice(int(starts[first]), int(ends[cut - 1])))
        cut = first
    return runs[::-1]


def gather(
    ids: npt.NDArray[np.int32], starts: npt.NDArray[np.intp], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Concatenate selected inputs of a buffer, int64 [tokens].

    Args:
        ids: token ids of all inputs, concatenated, int32.
        starts: offset in `ids` of each selected input, [inputs].
        lengths: number of tokens in each selected input, [inputs].
    """
    ends = np.cumsum(lengths)
    positions = np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())
    gathered: npt.NDArray[np.int64] = ids[positions].astype(np.int64)
    return gathered


def pad(
    ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    pad_id: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stack inputs of a buffer into a matrix, padded on the right to the length of the longest one.

    Args:
        ids: token ids of all inputs, concatenated.
        starts: offset in `ids` of each selected input, [inputs].
        lengths: number of tokens in each selected input, [inputs]. At least one input is selected.
        pad_id: the padding id.

    Returns:
        The ids and the attention mask (1 for a token, 0 for padding), both int64 [inputs, longest length].
    """
    columns = np.arange(int(lengths.max()))
    mask = columns < lengths[:, None]
    # The mask hides ids beyond an input's end; `minimum` keeps positions within the buffer.
    positions = np.minimum(starts[:, None] + columns, len(ids) - 1)
    return np.where(mask, ids[positions], pad_id), mask.astype(np.int64)
