"""Which replica a call goes to: one that has the fewest of this caller's calls under way.

Ray Serve's own router compares two replicas at random, by lengths that are now and then one behind. With two calls
under way to each replica, one of them ready to be computed next, that leaves a replica without work while another has
three: so these are counted exactly, and all replicas are compared. Knows nothing of what a call carries.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)


class LeastOutstandingRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Ray Serve's `request_router_class` of the models' deployments."""

    def initialize_state(self, **_: Any) -> None:
        """Begin with nothing under way; Ray Serve calls this once."""
        self._under_way: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: Sequence[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas with the fewest calls; among them Ray Serve takes the one with the shortest queue."""
        if pending_request is not None:  # when none takes it, Ray Serve pauses before it asks again
            pending_request.routing_context.should_backoff = True
        by_calls: dict[int, list[RunningReplica]] = {}
        for replica in candidate_replicas:
            by_calls.setdefault(self._under_way[replica.replica_id], []).append(replica)
        return [by_calls[calls] for calls in sorted(by_calls)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a call that goes out."""
        super().on_send_request(replica_id)
        self._under_way[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a call that came back, well or not."""
        super().on_request_completed(replica_id, internal_request_id)
        self._under_way[replica_id] -= 1
        if self._under_way[replica_id] <= 0:  # replicas come and go
            del self._under_way[replica_id]
