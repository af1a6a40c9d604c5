from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.encoder.padding import pad, padded_batches, stream_budget
from tests.support.strategies import budgets, costs, pass_costs, some_costs


def cut(lengths: list[int], *, budget: int, pass_tokens: float) -> list[list[int]]:
    """Return the input indices of each padded batch."""
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
    stream_tokens = stream_budget(
        np.array(lengths, np.int32), max_batch_tokens=budget, streams=streams
    )

    if stream_tokens is None:
        is_small = streams == 1 or sum(lengths) < streams * 32
        assert is_small or max(lengths) * streams > min(sum(lengths), budget)
    else:
        assert max(lengths) * streams <= budget
        assert 1 <= stream_tokens <= max(budget // streams, 1)
        assert stream_tokens * streams <= sum(lengths) + streams


@given(costs, budgets, pass_costs)
def test_padded_batches_cover_every_input_once(
    costs: list[int], budget: int, pass_tokens: float
) -> None:
    batches = cut(costs, budget=budget, pass_tokens=pass_tokens)

    assert sorted(i for batch in batches for i in batch) == list(range(len(costs)))


@given(some_costs, budgets, pass_costs)
def test_a_batch_fits_the_budget_with_its_padding(
    costs: list[int], budget: int, pass_tokens: float
) -> None:
    for batch in cut(costs, budget=budget, pass_tokens=pass_tokens):
        longest = max(costs[i] for i in batch)
        assert longest * len(batch) <= budget or len(batch) == 1


@given(some_costs, budgets, pass_costs)
def test_the_longest_inputs_come_first(costs: list[int], budget: int, pass_tokens: float) -> None:
    """A batch that does not fit in memory fails before the others run."""
    batches = cut(costs, budget=budget, pass_tokens=pass_tokens)

    lengths = [costs[i] for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), pass_costs)
def test_no_other_cut_costs_less(lengths: list[int], pass_tokens: float) -> None:
    descending = sorted(lengths, reverse=True)

    def cost(batches: Sequence[Sequence[int]]) -> float:
        return sum(max(batch) * len(batch) + pass_tokens for batch in batches)

    actual = cut(lengths, budget=1000, pass_tokens=pass_tokens)

    all_cuts = (
        [descending[start:stop] for start, stop in pairwise([0, *edges, len(lengths)])]
        for count in range(len(lengths))
        for edges in combinations(range(1, len(lengths)), count)
    )
    assert cost([[lengths[i] for i in batch] for batch in actual]) == pytest.approx(
        min(map(cost, all_cuts))
    )


def test_mixed_lengths_are_cut_with_little_padding() -> None:
    lengths = [1 + n % 512 for n in range(4096)]

    batches = cut(lengths, budget=32_768, pass_tokens=100)

    padded = sum(lengths[batch[0]] * len(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)


@pytest.mark.parametrize("selected", [[0, 1, 2], [2, 0], [1]])
def test_padding_stacks_inputs_into_a_matrix(selected: list[int]) -> None:
    inputs = [[5, 6, 7], [8], [9, 10]]
    flat = np.array([number for ids in inputs for number in ids])
    starts, lengths = np.array([0, 3, 4]), np.array([3, 1, 2])

    ids, mask = pad(flat, starts[selected], lengths[selected], pad_id=99)

    width = max(len(inputs[i]) for i in selected)
    assert ids.tolist() == [inputs[i] + [99] * (width - len(inputs[i])) for i in selected]
    assert mask.tolist() == [
        [1] * len(inputs[i]) + [0] * (width - len(inputs[i])) for i in selected
    ]
    assert ids.dtype == mask.dtype == np.int64
