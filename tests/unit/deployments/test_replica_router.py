"""Which replica a call goes to. Ray Serve's own part of the router stays out: the counts are what is tested."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.deployments.replica_router import LeastOutstandingRouter

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Replica:
    """As much of one as is looked at."""

    replica_id: str


REPLICAS = [Replica(name) for name in "abc"]


def router() -> Any:
    """Make a router without Ray Serve's state, whose queue lengths are not kept."""
    made = object.__new__(LeastOutstandingRouter)
    made._use_replica_queue_len_cache = False
    made.initialize_state()
    return made


async def test_replicas_come_by_their_calls() -> None:
    """Those with the fewest first, and together."""
    chooser = router()
    for name in "aab":
        chooser.on_send_request(name)

    ranks = await chooser.choose_replicas(REPLICAS)

    assert [[replica.replica_id for replica in rank] for rank in ranks] == [["c"], ["b"], ["a"]]


async def test_a_call_that_came_back_counts_no_more() -> None:
    """Whatever it brought; and nothing is kept of a replica without calls."""
    chooser = router()
    chooser.on_send_request("a")
    chooser.on_request_completed("a", "an-id")

    (rank,) = await chooser.choose_replicas(REPLICAS)

    assert rank == REPLICAS
    assert not chooser._under_way


@given(ends=st.lists(st.integers(0, 5), max_size=60))
async def test_with_two_calls_for_each_replica_none_is_without_work(ends: list[int]) -> None:
    """Whichever of them comes back, the next goes where one is missing."""
    chooser = router()
    calls: list[str] = []

    async def send() -> None:
        ranks = await chooser.choose_replicas(REPLICAS)
        calls.append(ranks[0][0].replica_id)
        chooser.on_send_request(calls[-1])

    for _ in range(6):
        await send()
    for end in ends:
        chooser.on_request_completed(calls.pop(end), "an-id")
        await send()

    assert sorted(calls) == [*"aabbcc"]
