import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.deployments.batch_gate import Gate

pytestmark = pytest.mark.anyio

BUDGET = 10


@dataclass(eq=False)
class Caller:
    """One chunk before the gate, in it, or past it."""

    tokens: int
    inside: asyncio.Event = field(default_factory=asyncio.Event)
    may_leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def is_inside(self) -> bool:
        """Whether the gate has let it in and it has not left."""
        return self.inside.is_set() and not self.is_gone

    @property
    def is_gone(self) -> bool:
        """Whether it has left or was cancelled."""
        return self.task is not None and self.task.done()


class Street:
    """A gate and everybody who came to it."""

    def __init__(self, *, budget: int = BUDGET) -> None:
        self.gate = Gate(budget=budget)
        self.callers: list[Caller] = []

    def come(self, tokens: int) -> Caller:
        """A chunk comes; it moves at the next turn of the loop."""
        caller = Caller(tokens)
        caller.task = asyncio.create_task(self._pass(caller))
        self.callers.append(caller)
        return caller

    async def _pass(self, caller: Caller) -> None:
        async with self.gate.enter(caller.tokens):
            caller.inside.set()
            await caller.may_leave.wait()

    def waiting(self) -> list[Caller]:
        """Who stands before the gate, in order."""
        return [c for c in self.callers if not c.inside.is_set() and not c.is_gone]

    def inside(self) -> list[Caller]:
        """Who is with the model."""
        return [c for c in self.callers if c.is_inside]

    async def empty(self) -> None:
        """Let everybody leave, and see to it that all do and nobody met an error."""
        for caller in self.callers:
            caller.may_leave.set()
        for _ in self.callers:
            await settle()
        tasks = [caller.task for caller in self.callers if caller.task is not None]
        assert [task for task in tasks if not task.done()] == []
        assert [task for task in tasks if not task.cancelled() and task.exception()] == []


async def settle() -> None:
    """Let the loop turn until nothing that is ready is left to do."""
    for _ in range(6):
        await asyncio.sleep(0)


async def test_the_first_chunk_goes_straight_in() -> None:
    """While the model is free nobody waits for company."""
    street = Street()

    caller = street.come(1)
    await settle()

    assert caller.is_inside
    await street.empty()


async def test_late_arrivals_wait_and_go_together() -> None:
    """A batch that is not full stays open until the model is free."""
    street = Street()
    first = street.come(9)
    late = [street.come(3) for _ in range(3)]
    await settle()
    waited = street.waiting()

    first.may_leave.set()
    await settle()

    assert waited == late
    assert street.inside() == late
    await street.empty()


async def test_a_full_batch_goes_one_ahead_and_a_second_one_does_not() -> None:
    """The model finds the next batch ready, and what comes after it can still be joined."""
    street = Street()
    street.come(BUDGET)
    ahead = street.come(BUDGET)
    second = street.come(BUDGET)
    await settle()

    assert ahead.is_inside
    assert street.waiting() == [second]
    await street.empty()


async def test_a_chunk_over_the_budget_goes_alone() -> None:
    """One input that is longer than the budget is embedded all the same."""
    street = Street()
    street.come(1)
    large, small = street.come(BUDGET + 5), street.come(1)
    await settle()

    assert large.is_inside
    assert street.waiting() == [small]
    await street.empty()


async def test_a_cancelled_waiter_leaves_the_queue_at_once() -> None:
    """Its tokens stand in nobody's way."""
    street = Street()
    street.come(1)
    gone = street.come(9)
    await settle()

    assert gone.task is not None
    gone.task.cancel()
    await settle()

    assert (street.gate.queued_chunks, street.gate.queued_tokens) == (0, 0)
    await street.empty()


async def test_a_waiter_cancelled_as_it_is_let_in_gives_its_place_back() -> None:
    """Between being let in and running, a caller can be cancelled; the gate must not wait for it."""
    street = Street()
    first, second = street.come(BUDGET), street.come(3)
    await settle()
    assert second.task is not None
    first.may_leave.set()
    await asyncio.sleep(0)  # the first has left and the second's turn has come, but it has not run

    second.task.cancel()
    third = street.come(3)
    await settle()

    assert not second.inside.is_set()
    assert third.is_inside
    await street.empty()


async def test_those_who_have_gone_do_not_fill_a_batch_ahead() -> None:
    """A batch of cancelled callers would be frozen before late arrivals could join it."""
    street = Street()
    street.come(1)
    gone, small = street.come(8), street.come(1)
    await settle()
    assert gone.task is not None

    late = street.come(2)  # comes before the gate has heard, in the same turn of the loop
    gone.task.cancel()
    await settle()

    assert street.waiting() == [small, late]
    await street.empty()


async def test_nobody_is_let_in_who_has_just_gone() -> None:
    """The model frees up in the same turn of the loop in which a waiter is cancelled."""
    street = Street()
    first, gone, next_one = street.come(BUDGET), street.come(3), street.come(3)
    await settle()
    assert gone.task is not None

    first.may_leave.set()
    gone.task.cancel()
    await settle()

    assert street.inside() == [next_one]
    await street.empty()


async def test_an_error_inside_frees_the_model() -> None:
    """A batch that fails is over like any other."""
    gate = Gate(budget=BUDGET)
    with pytest.raises(ZeroDivisionError):
        async with gate.enter(1):
            raise ZeroDivisionError

    async with asyncio.timeout(5), gate.enter(1):
        entered = True

    assert entered


async def test_a_smaller_budget_opens_the_gate_for_what_is_now_full() -> None:
    """Settings change while chunks wait."""
    street = Street()
    street.come(1)
    waiting = street.come(5)
    await settle()
    assert street.waiting() == [waiting]

    street.gate.budget = 5
    street.gate.open()
    await settle()

    assert waiting.is_inside
    await street.empty()


# Properties: any order of coming, leaving and going away.

verbs = st.sampled_from(["come", "come", "leave", "cancel", "turn"])
steps = st.lists(st.tuples(verbs, st.integers(0, 2 * BUDGET)), min_size=10, max_size=60)
Check = Callable[[Street], None]


def walk(steps: list[tuple[str, int]], *, is_calm: bool, check: Check) -> None:
    """Take steps on a loop of their own, and check after each.

    Args:
        steps: a verb and a number: tokens, or which caller.
        is_calm: whether the loop comes to rest after each step, or only when a step says so.
        check: raises where something is wrong.
    """

    async def run() -> None:
        street = Street()
        for verb, number in steps:
            take_step(street, verb, number)
            if is_calm or verb == "turn":
                await settle()
                check(street)
        await street.empty()
        assert (street.gate.queued_chunks, street.gate.queued_tokens) == (0, 0)

    asyncio.run(run())


def take_step(street: Street, verb: str, number: int) -> None:
    """Come, leave or go away."""
    if verb == "come":
        street.come(number)
        return
    pool = street.inside() if verb == "leave" else [c for c in street.callers if not c.is_gone]
    if not pool or verb == "turn":
        return
    caller = pool[number % len(pool)]
    assert caller.task is not None
    if verb == "leave":
        caller.may_leave.set()
    else:
        caller.task.cancel()


class Reference:
    """The rule in plain lists: what the gate must do, when each step comes to rest."""

    def __init__(self) -> None:
        self.waiting: list[Caller] = []
        self.batches: list[list[Caller]] = []
        self._seen = 0

    def follow(self, street: Street) -> None:
        """Take over what happened, and let in by the rule."""
        self.waiting += street.callers[self._seen :]
        self._seen = len(street.callers)
        self.waiting = [c for c in self.waiting if not c.is_gone]
        self.batches = [[c for c in batch if not c.is_gone] for batch in self.batches]
        self.batches = [batch for batch in self.batches if batch]
        while self.waiting and (not self.batches or self._may_go_ahead()):
            self.batches.append(self._take())

    def _may_go_ahead(self) -> bool:
        return len(self.batches) == 1 and sum(c.tokens for c in self.waiting) >= BUDGET

    def _take(self) -> list[Caller]:
        batch = [self.waiting.pop(0)]
        while self.waiting and sum(c.tokens for c in [*batch, self.waiting[0]]) <= BUDGET:
            batch.append(self.waiting.pop(0))
        return batch


@given(steps)
def test_the_gate_follows_its_rule(steps: list[tuple[str, int]]) -> None:
    """One batch runs, one full one is ahead, each the oldest chunks that fit the budget; the rest waits."""
    reference = Reference()

    def check(street: Street) -> None:
        reference.follow(street)
        assert street.waiting() == reference.waiting
        assert set(street.inside()) == {c for batch in reference.batches for c in batch}

    walk(steps, is_calm=True, check=check)


@given(steps)
def test_whatever_happens_in_one_turn_nothing_is_lost(steps: list[tuple[str, int]]) -> None:
    """Oldest first, no more than two batches inside, an idle model only when nobody waits."""

    def check(street: Street) -> None:
        waiting, inside = street.waiting(), street.inside()
        younger = street.callers[street.callers.index(waiting[0]) :] if waiting else []
        assert not any(caller.inside.is_set() for caller in younger)
        assert sum(c.tokens for c in inside) <= 2 * max([BUDGET, *(c.tokens for c in inside)])
        assert inside or not waiting
        assert street.gate.queued_chunks == len(waiting)
        assert street.gate.queued_tokens == sum(c.tokens for c in waiting)

    walk(steps, is_calm=False, check=check)
