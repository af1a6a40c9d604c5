"""Processes that are killed under load: what clients see, and that all is well again afterwards."""

import os
import signal
from collections.abc import Iterator

import pytest

from serve_app.proxy.environment import haproxy_binary
from tests.support.http import post
from tests.support.load import LOST, Load, sending
from tests.support.server import Server, answers, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.both_modes]

CLIENTS = 8
MODEL, INGRESS = "ray::ServeReplica:plumbing:obedient", "ray::ServeReplica:plumbing:ingress"
CONTROLLER = "ray::ServeController"


@pytest.fixture
def load(server: Server) -> Iterator[Load]:
    """Clients that send one request after the other, all of which take a third of a second."""
    with sending(server.plumbing_url, {"input": "slow"}, clients=CLIENTS) as load:
        wait_for(lambda: len(load.answers) > CLIENTS, timeout_s=30, what="answers")
        yield load


def kill(server: Server, title: str) -> None:
    """Kill a process, and wait until there is another in its place and the server is ready."""
    victim = server.processes(title)[0]
    count = len(server.processes(title))
    os.kill(victim, signal.SIGKILL)
    wait_for(
        lambda: len([pid for pid in server.processes(title) if pid != victim]) >= count,
        timeout_s=200,
        what=f"another {title}",
    )
    wait_for(lambda: answers(f"{server.plumbing_url}/ready"), timeout_s=200, what="a ready server")


def go_on(load: Load) -> None:
    """Wait until every client has been answered again."""
    seen = len(load.answers)
    wait_for(lambda: len(load.answers) > seen + 3 * CLIENTS, timeout_s=120, what="more answers")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", [MODEL, CONTROLLER])
def test_a_model_s_replica_or_the_controller_that_is_killed_loses_nothing(
    server: Server, load: Load, title: str
) -> None:
    """What the replica had is sent to the next one; the controller is in the way of no request."""
    kill(server, title)
    go_on(load)

    print(f"{server.mode}, {title}: {load}")
    assert set(load.statuses) == {200}


@pytest.mark.timeout(600)
def test_an_ingress_replica_that_is_killed_loses_at_most_what_it_had(
    server: Server, load: Load
) -> None:
    """HAProxy sends that to the other; through Ray's default proxy it is 503, and a client may try again."""
    wait_for(lambda: len(server.processes(INGRESS)) == 2, timeout_s=200, what="two replicas")
    kill(server, INGRESS)
    go_on(load)

    print(f"{server.mode}, ingress: {load}")
    if server.mode == "throughput":
        assert set(load.statuses) == {200}
    else:
        assert set(load.statuses) <= {200, 503}
        assert load.statuses[503] <= CLIENTS


@pytest.mark.timeout(600)
def test_a_proxy_that_is_killed_breaks_the_connections_it_had(server: Server, load: Load) -> None:
    """Nobody else listens on its port, so clients have to come again; a new HAProxy has to find its replicas first."""
    proxy = "ray::ProxyActor" if server.mode == "default" else haproxy_binary({})
    assert proxy is not None
    kill(server, proxy)
    go_on(load)

    print(f"{server.mode}, proxy: {load}; away for {load.longest_gap_s:.1f} s")
    assert set(load.statuses) <= ({200, LOST} if server.mode == "default" else {200, LOST, 503})
    assert post(server.plumbing_url, {"input": "fine"}).status_code == 200
