from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest

from serve_app.deployments.replica_router import LeastOutstandingRouter

pytestmark = pytest.mark.anyio

DEPLOYMENT = DeploymentID(name="model", app_name="embeddings")
A, B, C = (ReplicaID(name, DEPLOYMENT) for name in "abc")


@dataclass(frozen=True, slots=True)
class Replica:
    """The part of Ray Serve's `RunningReplica` that the router reads."""

    replica_id: ReplicaID


REPLICAS = [Replica(replica_id) for replica_id in (A, B, C)]


def router() -> Any:
    """Build a router as Ray Serve does."""
    router = LeastOutstandingRouter(
        DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
    )
    router.initialize_state()
    return router


async def test_replicas_are_grouped_by_calls_in_flight() -> None:
    chooser = router()
    for replica_id in (A, A, B):
        chooser.on_send_request(replica_id)

    ranks = await chooser.choose_replicas(REPLICAS)

    assert [[replica.replica_id for replica in rank] for rank in ranks] == [[C], [B], [A]]


async def test_a_completed_call_is_no_longer_counted() -> None:
    chooser = router()
    chooser.on_send_request(A)
    chooser.on_request_completed(A, "an-id")

    (rank,) = await chooser.choose_replicas(REPLICAS)

    assert rank == REPLICAS
    assert not chooser._in_flight


async def test_ray_serve_pauses_when_all_replicas_reject_a_call() -> None:
    request = PendingRequest([], {}, RequestMetadata("an-id", "an-id"))

    await router().choose_replicas(REPLICAS, request)

    assert request.routing_context.should_backoff


async def test_ray_serve_counts_the_calls_too() -> None:
    """Among replicas with equally many calls from this caller, it takes the shortest queue."""
    chooser = router()

    chooser.on_send_request(A)

    assert chooser.replica_queue_len_cache.get(A) == 1


@given(ends=st.lists(st.integers(0, 5), max_size=60))
async def test_two_calls_per_replica_keep_every_replica_busy(ends: list[int]) -> None:
    chooser = router()
    calls: list[ReplicaID] = []

    async def send() -> None:
        ranks = await chooser.choose_replicas(REPLICAS)
        calls.append(ranks[0][0].replica_id)
        chooser.on_send_request(calls[-1])

    for _ in range(6):
        await send()
    for end in ends:
        chooser.on_request_completed(calls.pop(end), "an-id")
        await send()

    assert sorted(call.unique_id for call in calls) == [*"aabbcc"]
