from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.deployments.replica_router import LeastOutstandingRouter

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Replica:
    """The part of Ray Serve's `RunningReplica` that the router reads."""

    replica_id: str


REPLICAS = [Replica(name) for name in "abc"]


def router() -> Any:
    """Make a router without the state of Ray Serve's base class."""
    router = object.__new__(LeastOutstandingRouter)
    router._use_replica_queue_len_cache = False
    router.initialize_state()
    return router


async def test_replicas_are_grouped_by_calls_in_flight() -> None:
    chooser = router()
    for name in "aab":
        chooser.on_send_request(name)

    ranks = await chooser.choose_replicas(REPLICAS)

    assert [[replica.replica_id for replica in rank] for rank in ranks] == [["c"], ["b"], ["a"]]


async def test_a_completed_call_is_no_longer_counted() -> None:
    chooser = router()
    chooser.on_send_request("a")
    chooser.on_request_completed("a", "an-id")

    (rank,) = await chooser.choose_replicas(REPLICAS)

    assert rank == REPLICAS
    assert not chooser._in_flight


@given(ends=st.lists(st.integers(0, 5), max_size=60))
async def test_two_calls_per_replica_keep_every_replica_busy(ends: list[int]) -> None:
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
