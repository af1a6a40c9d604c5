from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batching import pad, padded_batches, split_by_budget, take_batch

costs = st.lists(st.integers(0, 50), max_size=40)
some_costs = st.lists(st.integers(0, 50), min_size=1, max_size=40)
budgets = st.integers(1, 100)


@given(some_costs, budgets)
def test_a_batch_takes_what_fits_and_not_one_less(costs: list[int], budget: int) -> None:
    """As many leading costs as fit the budget, but one at least."""
    count = take_batch(costs, budget=budget)

    assert count >= 1
    assert sum(costs[:count]) <= budget or count == 1
    assert count == len(costs) or sum(costs[: count + 1]) > budget


def test_nothing_makes_no_batch() -> None:
    """An empty queue gives nothing."""
    assert take_batch([], budget=10) == 0


def test_a_batch_looks_no_further_than_it_reaches() -> None:
    """A long queue costs no more than the batch that is taken from it."""
    costs = iter([6, 6, 6, 6])

    count = take_batch(costs, budget=10)

    assert count == 1
    assert list(costs) == [6, 6]


@given(costs, budgets)
def test_splitting_covers_every_input_once_and_in_order(costs: list[int], budget: int) -> None:
    """The runs follow each other without gap or overlap."""
    runs = split_by_budget(np.array(costs, np.int32), budget=budget)

    edges = [0, *(run.stop for run in runs)]
    assert [run.start for run in runs] == edges[:-1]
    assert edges[-1] == len(costs)
    assert all(start < stop for start, stop in pairwise(edges))


@given(some_costs, budgets)
def test_a_run_fits_the_budget_or_is_one_input(costs: list[int], budget: int) -> None:
    """No job is larger than a token budget unless a single input is."""
    runs = split_by_budget(np.array(costs, np.int32), budget=budget)

    assert all(sum(costs[run]) <= budget or run.stop - run.start == 1 for run in runs)


@given(some_costs, budgets)
def test_no_two_neighbouring_runs_would_fit_together(costs: list[int], budget: int) -> None:
    """A request is cut into no more jobs than its order asks for."""
    runs = split_by_budget(np.array(costs, np.int32), budget=budget)

    firsts = [costs[right.start] for _, right in pairwise(runs)]
    sums = [sum(costs[left]) for left, _ in pairwise(runs)]
    assert all(total + first > budget for total, first in zip(sums, firsts, strict=True))


@given(costs, budgets)
def test_padded_batches_hold_every_input_once(costs: list[int], budget: int) -> None:
    """Sorting loses and doubles nothing."""
    batches = list(padded_batches(np.array(costs, np.int32), max_batch_tokens=budget))

    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(costs)))


@given(some_costs, budgets)
def test_a_padded_batch_fits_the_budget_with_its_padding(costs: list[int], budget: int) -> None:
    """Longest length times inputs stays within the budget, unless one input alone is longer."""
    batches = padded_batches(np.array(costs, np.int32), max_batch_tokens=budget)

    for batch in batches:
        longest = max(costs[i] for i in batch)
        assert longest * len(batch) <= budget or len(batch) == 1


@given(some_costs, budgets)
def test_the_longest_inputs_come_first(costs: list[int], budget: int) -> None:
    """What does not fit the memory fails in the first batch and not in the last."""
    batches = padded_batches(np.array(costs, np.int32), max_batch_tokens=budget)

    lengths = [costs[i] for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("places", [[0, 1, 2], [2, 0], [1]])
def test_padding_lays_inputs_under_each_other(places: list[int]) -> None:
    """Each row is its input's ids, filled up on the right, and the mask says which are which."""
    inputs = [[5, 6, 7], [8], [9, 10]]
    flat = np.array([number for ids in inputs for number in ids], np.int32)
    starts, lengths = np.array([0, 3, 4], np.intp), np.array([3, 1, 2], np.int32)

    ids, mask = pad(flat, starts[places], lengths[places], pad_id=99)

    width = max(len(inputs[i]) for i in places)
    assert ids.tolist() == [inputs[i] + [99] * (width - len(inputs[i])) for i in places]
    assert mask.tolist() == [[1] * len(inputs[i]) + [0] * (width - len(inputs[i])) for i in places]
    assert ids.dtype == mask.dtype == np.int64
