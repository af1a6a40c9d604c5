"""The request router: a call goes to a replica with the fewest calls in flight from this caller.

Ray Serve's own router compares two random replicas by queue lengths that can be one call out of
date. With two calls in flight per replica, one replica can then be idle while a second one has
three calls. This router counts its own calls exactly and compares all replicas. It does not
depend on the content of a call.
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
        """Start with no calls in flight. Ray Serve calls this once."""
        self._in_flight: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: Sequence[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas, grouped by their number of calls in flight, fewest calls first.

        Ray Serve tries the groups in order. Within a group, it takes the replica with the shortest
        queue.
        """
        if pending_request is not None:  # if all replicas reject the call, Ray Serve pauses
            pending_request.routing_context.should_backoff = True
        by_calls: dict[int, list[RunningReplica]] = {}
        for replica in candidate_replicas:
            by_calls.setdefault(self._in_flight[replica.replica_id], []).append(replica)
        return [by_calls[calls] for calls in sorted(by_calls)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a call that was sent."""
        super().on_send_request(replica_id)
        self._in_flight[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Remove a call that returned or failed from the count."""
        super().on_request_completed(replica_id, internal_request_id)
        self._in_flight[replica_id] -= 1
        if self._in_flight[replica_id] <= 0:  # or entries of removed replicas would accumulate
            del self._in_flight[replica_id]
