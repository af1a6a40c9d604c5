"""How a batch is cut into forward passes, and how the inputs of a pass are laid out.

Pure functions over lengths and ids. Knows nothing of torch.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

# Lengths that are told apart when a batch is cut. 64 keep the search under a millisecond; an input is padded by no more
# than a 64th of the longest on their account.
_LENGTH_CLASSES = 64

# Least tokens for a stream. With MiniLM and two streams, 4 inputs of 12 tokens take the same time either way; with more to
# do, streams are up to 8 % ahead on an idle machine, and 8 to 25 % where another process has a fifth of it.
_STREAM_TOKENS = 32

# A pass of fewer tokens is not halved for the sake of balance; halves of 100 tokens would cost 4 % more together.
_SMALL_PASS_TOKENS = 256


def stream_budget(
    lengths: npt.NDArray[np.int32], *, max_batch_tokens: int, streams: int
) -> int | None:
    """Return the most padded tokens in a pass where several passes are computed side by side.

    Two passes for each stream if they are not small: one that is held up leaves more of the work to the others.

    Args:
        lengths: tokens of each input, int32 [inputs].
        max_batch_tokens: most padded tokens in all streams together.
        streams: passes that are computed side by side, each on its part of the processor.

    Returns:
        None where passes go one at a time, on the whole processor: there is little to do, or one input is longer than a
        stream's share of it or of the budget.
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
    """Cut inputs into the padded batches that cost least together, each within the budget of padded tokens.

    A batch costs its padded tokens (longest length times inputs), and `pass_tokens` for being one. Few batches pad
    much, many cost a pass each; where the cuts go is found by dynamic programming. Longest first, so that a batch that
    does not fit the memory fails at once and not after the others.

    Args:
        lengths: tokens of each input, int32 [inputs].
        max_batch_tokens: most padded tokens in a batch; an input that is longer alone makes a batch of its own.
        pass_tokens: what a forward pass costs beside its tokens, in tokens.

    Yields:
        The indices of one batch's inputs, longest first.
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
    """Cut inputs, sorted by length, into runs that are padded to one length each; a run may be several batches."""
    if not len(descending):
        return []
    # Lengths that differ by less are not told apart, so that there are few places for a cut however many inputs.
    step = max(int(descending[0]) // _LENGTH_CLASSES, 1)
    classes = -(-descending // step)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1])
    ends = np.append(starts[1:], len(descending))
    longest = descending[starts]
    inputs_in_batch = np.maximum(max_batch_tokens // longest, 1)
    # The least cost of everything before each place for a cut, and where the last run before that place starts.
    least = np.zeros(len(starts) + 1)
    last_start = np.zeros(len(starts) + 1, np.intp)
    for place in range(1, len(starts) + 1):
        inputs = ends[place - 1] - starts[:place]
        passes = -(-inputs // inputs_in_batch[:place])
        costs = least[:place] + inputs * longest[:place] + passes * pass_tokens
        last_start[place] = np.argmin(costs)
        least[place] = costs[last_start[place]]
    runs = []
    place = len(starts)
    while place:
        first = int(last_start[place])
        runs.append(slice(int(starts[first]), int(ends[place - 1])))
        place = first
    return runs[::-1]


def gather(
    ids: npt.NDArray[np.int32], starts: npt.NDArray[np.intp], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Lay some inputs of a buffer one after the other, int64.

    Args:
        ids: token ids of many inputs, int32.
        starts: where in `ids` each input starts, [inputs].
        lengths: its tokens, [inputs].
    """
    ends = np.cumsum(lengths)
    places = np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())
    gathered: npt.NDArray[np.int64] = ids[places].astype(np.int64)
    return gathered


def pad(
    ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    pad_id: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lay inputs of one buffer under each other, filled up on the right to the longest.

    Args:
        ids: token ids of many inputs, one after the other.
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
    return np.where(mask, ids[places], pad_id), mask.astype(np.int64)
