from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    DeploymentTargetInfo,
    ReplicaID,
    RunningReplicaInfo,
)
from ray.serve._private.router import AsyncioRouter
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RunningReplica as RayReplica

from serve_app.deployments.replica_router import LeastOutstandingRouter
from serve_app.deployments.running_replicas import connect, running_replicas
from serve_app.messages import RunningReplica
from tests.support.fakes import IDLE_REPLICA

pytestmark = pytest.mark.anyio

DEPLOYMENT = DeploymentID(name="model", app_name="embeddings")
STATS = asdict(IDLE_REPLICA)


class ReplicaInfo(RunningReplicaInfo):  # type: ignore[misc]
    """What Ray Serve's controller sends about a replica, without an actor."""

    def get_actor_handle(self) -> SimpleNamespace:
        """Return a fake, because there is no cluster in which to look the actor up."""
        return SimpleNamespace(_actor_id=self.actor_name)


class Handle(DeploymentHandle):  # type: ignore[misc]
    """Ray Serve's handle with a router that is not connected to a controller."""

    def __init__(self) -> None:
        super().__init__(
            DEPLOYMENT.name,
            DEPLOYMENT.app_name,
            _create_router=lambda **_: SimpleNamespace(_asyncio_router=self.router),
        )
        self.router: Any = object.__new__(AsyncioRouter)
        self.router._request_router = None
        self.router._request_router_class = None
        self.router._running_replicas = None
        self.router._metrics_manager = SimpleNamespace(_update_running_replicas=lambda _: None)

    def receive(self, replicas: Mapping[str, Mapping[str, Any]]) -> None:
        """Receive each replica's name and stats from Ray Serve's controller."""
        infos = [
            ReplicaInfo(
                replica_id=ReplicaID(name, DEPLOYMENT),
                node_id=None,
                node_ip=None,
                availability_zone=None,
                actor_name=name,
                max_ongoing_requests=3,
                routing_stats=stats,
            )
            for name, stats in replicas.items()
        ]
        self.router.update_deployment_targets(
            DeploymentTargetInfo(is_available=True, running_replicas=infos)
        )

    def create_request_router(self) -> None:
        """Create the request router, which receives the replicas from then on."""
        self.router._request_router = LeastOutstandingRouter(
            DEPLOYMENT,
            DeploymentHandleSource.REPLICA,
            use_replica_queue_len_cache=True,
            create_replica_wrapper_func=RayReplica,
        )
        self.router._request_router.initialize_state()


@pytest.fixture
def handle() -> Handle:
    """A handle that is connected, and has not received any replicas."""
    handle = Handle()
    connect(handle)
    return handle


async def test_no_replicas_run_until_ray_serve_has_sent_them(handle: Handle) -> None:
    assert running_replicas(handle) == []


async def test_replicas_are_known_before_there_is_a_request_router(handle: Handle) -> None:
    handle.receive({"one": STATS})

    assert running_replicas(handle) == [RunningReplica(3, IDLE_REPLICA)]


async def test_replicas_are_those_of_the_request_router(handle: Handle) -> None:
    handle.receive({"one": STATS, "two": STATS})
    handle.create_request_router()

    handle.receive({"two": STATS, "three": {}})

    assert running_replicas(handle) == [RunningReplica(3, IDLE_REPLICA), RunningReplica(3, None)]


async def test_a_replica_has_the_state_that_it_last_reported(handle: Handle) -> None:
    handle.create_request_router()
    handle.receive({"one": {}})
    before = running_replicas(handle)

    handle.receive({"one": STATS})

    assert before == [RunningReplica(3, None)]
    assert running_replicas(handle) == [RunningReplica(3, IDLE_REPLICA)]


async def test_a_handle_that_is_in_use_is_connected_as_it_is(handle: Handle) -> None:
    """Ray Serve raises if a handle is initialized twice."""
    connect(handle)

    assert handle.is_initialized


def test_a_version_of_ray_with_another_structure_is_named() -> None:
    handle: Any = SimpleNamespace(is_initialized=True, _router=SimpleNamespace())

    with pytest.raises(RuntimeError, match=f"Ray {ray.__version__} is not supported: .*_asyncio"):
        connect(handle)
