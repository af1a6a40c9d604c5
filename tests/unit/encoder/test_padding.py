from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.encoder.padding import pad, padded_batches, stream_budget
from tests.support.strategies import budgets, costs, pass_costs, some_costs


def cut(lengths: list[int], *, budget: int, pass_tokens: float) -> list[list[int]]:
    """Return the indices of each padded batch."""
    batches = padded_batches(
        np.array(lengths, np.int32), max_batch_tokens=budget, pass_tokens=pass_tokens
    )
    return [batch.tolist() for batch in batches]


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=100),
    st.integers(1, 4096),
    st.integers(1, 16),
)
def test_streams_share_a_batch_within_its_budget(
    lengths: list[int], budget: int, streams: int
) -> None:
    """Together they are no larger than one pass may be, and each stream has a pass."""
    in_stream = stream_budget(np.array(lengths, np.int32), max_batch_tokens=budget, streams=streams)

    if in_stream is None:
        is_small = streams == 1 or sum(lengths) < streams * 32
        assert is_small or max(lengths) * streams > min(sum(lengths), budget)
    else:
        assert max(lengths) * streams <= budget
        assert 1 <= in_stream <= max(budget // streams, 1)
        assert in_stream * streams <= sum(lengths) + streams


@given(costs, budgets, pass_costs)
def test_padded_batches_hold_every_input_once(
    costs: list[int], budget: int, pass_tokens: float
) -> None:
    """Sorting loses and doubles nothing."""
    batches = cut(costs, budget=budget, pass_tokens=pass_tokens)

    assert sorted(i for batch in batches for i in batch) == list(range(len(costs)))


@given(some_costs, budgets, pass_costs)
def test_a_padded_batch_fits_the_budget_with_its_padding(
    costs: list[int], budget: int, pass_tokens: float
) -> None:
    """Longest length times inputs stays within the budget, unless one input alone is longer."""
    for batch in cut(costs, budget=budget, pass_tokens=pass_tokens):
        longest = max(costs[i] for i in batch)
        assert longest * len(batch) <= budget or len(batch) == 1


@given(some_costs, budgets, pass_costs)
def test_the_longest_inputs_come_first(costs: list[int], budget: int, pass_tokens: float) -> None:
    """What does not fit the memory fails in the first batch and not in the last."""
    batches = cut(costs, budget=budget, pass_tokens=pass_tokens)

    lengths = [costs[i] for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), pass_costs)
def test_no_other_cut_of_the_sorted_inputs_costs_less(
    lengths: list[int], pass_tokens: float
) -> None:
    """Where all fit the budget, against every way to cut."""
    descending = sorted(lengths, reverse=True)

    def cost(batches: Sequence[Sequence[int]]) -> float:
        return sum(max(batch) * len(batch) + pass_tokens for batch in batches)

    found = cut(lengths, budget=1000, pass_tokens=pass_tokens)

    every_way = (
        [descending[start:stop] for start, stop in pairwise([0, *edges, len(lengths)])]
        for count in range(len(lengths))
        for edges in combinations(range(1, len(lengths)), count)
    )
    assert cost([[lengths[i] for i in batch] for batch in found]) == pytest.approx(
        min(map(cost, every_way))
    )


def test_inputs_of_all_lengths_are_cut_with_little_padding() -> None:
    """Lengths are told apart in classes, so that thousands of inputs are cut as well as few."""
    lengths = [1 + n % 512 for n in range(4096)]

    batches = cut(lengths, budget=32_768, pass_tokens=100)

    padded = sum(lengths[batch[0]] * len(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)


@pytest.mark.parametrize("places", [[0, 1, 2], [2, 0], [1]])
def test_padding_lays_inputs_under_each_other(places: list[int]) -> None:
    """Each row is its input's ids, filled up on the right, and the mask says which are which."""
    inputs = [[5, 6, 7], [8], [9, 10]]
    flat = np.array([number for ids in inputs for number in ids])
    starts, lengths = np.array([0, 3, 4]), np.array([3, 1, 2])

    ids, mask = pad(flat, starts[places], lengths[places], pad_id=99)

    width = max(len(inputs[i]) for i in places)
    assert ids.tolist() == [inputs[i] + [99] * (width - len(inputs[i])) for i in places]
    assert mask.tolist() == [[1] * len(inputs[i]) + [0] * (width - len(inputs[i])) for i in places]
    assert ids.dtype == mask.dtype == np.int64
