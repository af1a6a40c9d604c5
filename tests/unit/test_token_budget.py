from itertools import pairwise

import numpy as np
from hypothesis import given

from serve_app.token_budget import split_by_budget
from tests.support.strategies import budgets, costs, some_costs


@given(costs, budgets)
def test_splitting_covers_every_input_once_and_in_order(costs: list[int], budget: int) -> None:
    runs = split_by_budget(np.array(costs, np.int32), budget=budget)

    edges = [0, *(run.stop for run in runs)]
    assert [run.start for run in runs] == edges[:-1]
    assert edges[-1] == len(costs)
    assert all(start < stop for start, stop in pairwise(edges))


@given(some_costs, budgets)
def test_a_run_fits_the_budget_or_is_one_input(costs: list[int], budget: int) -> None:
    runs = split_by_budget(np.array(costs, np.int32), budget=budget)

    assert all(sum(costs[run]) <= budget or run.stop - run.start == 1 for run in runs)


@given(some_costs, budgets)
def test_no_two_adjacent_runs_would_fit_together(costs: list[int], budget: int) -> None:
    runs = split_by_budget(np.array(costs, np.int32), budget=budget)

    firsts = [costs[right.start] for _, right in pairwise(runs)]
    sums = [sum(costs[left]) for left, _ in pairwise(runs)]
    assert all(total + first > budget for total, first in zip(sums, firsts, strict=True))
