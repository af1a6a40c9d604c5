"""The request router: a call goes to a replica with the fewest calls in flight from this caller.

Ray Serve's own router compares two random replicas by queue lengths that can be one call out of
date. With two calls in flight per replica, that leaves one replica idle while another has three.
This router counts its calls exactly and compares all replicas. Knows nothing of a call's content.
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
        """Return the replicas in groups of equally many calls, fewest first.

        Ray Serve tries the groups in order, and within a group takes the replica with the shortest
        queue.
        """
        if pending_request is not None:  # if all refuse, Ray Serve pauses before the next attempt
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
        """Uncount a call that returned or failed."""
        super().on_request_completed(replica_id, internal_request_id)
        self._in_flight[replica_id] -= 1
        if self._in_flight[replica_id] <= 0:  # else entries of removed replicas would pile up
            del self._in_flight[replica_id]
