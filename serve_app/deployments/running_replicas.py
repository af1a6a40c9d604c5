"""The running replicas of a model, and the state that each of them last reported.

Ray Serve's controller asks every replica for its state (`EmbeddingReplica.record_routing_stats`) and sends the states
to the router of every handle. Neither step is a call that `max_ongoing_requests` counts, so a full replica reports its
state too. A broadcast, in contrast, waits until the replica has a free slot, and takes the slot from a call.

Ray Serve offers the states only to a request router, which may not exist before the first call. This module therefore
reads private attributes of Ray Serve's handle. `connect` fails if a version of Ray lacks those that are
used before the first call.
"""

from dataclasses import fields
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from serve_app.messages import ReplicaState, RunningReplica

_FIELDS = {field.name for field in fields(ReplicaState)}


def connect(handle: DeploymentHandle) -> None:
    """Make Ray Serve send the replicas and their states to this process, which it otherwise does with the first call.

    Run this on the event loop that makes the calls.

    Raises:
        RuntimeError: this version of Ray has a different structure.
    """
    if not handle.is_initialized:
        handle._init()
    try:
        running_replicas(handle)
    except AttributeError as error:
        raise RuntimeError(f"Ray {ray.__version__} is not supported: {error}") from None


def running_replicas(handle: DeploymentHandle) -> list[RunningReplica]:
    """Return the replicas to which Ray Serve sends the handle's calls."""
    router: Any = handle._router._asyncio_router
    if router._request_router is None:  # no call has been made yet
        replicas = router._running_replicas or ()
    else:
        # A copy: Ray Serve may change the dict in another thread.
        replicas = tuple(router._request_router.curr_replicas.values())
    return [_read(replica.max_ongoing_requests, replica.routing_stats) for replica in replicas]


def _read(max_ongoing_requests: int, stats: dict[str, Any]) -> RunningReplica:
    # During an upgrade, a replica of another version can report other fields.
    is_known = stats.keys() == _FIELDS
    return RunningReplica(max_ongoing_requests, ReplicaState(**stats) if is_known else None)
