"""Processes are killed under load: which responses clients get, and whether the server recovers."""

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
    """Clients that send one request after another, each of which takes 0.3 seconds to compute."""
    with sending(server.plumbing_url, {"input": "slow"}, clients=CLIENTS) as load:
        wait_for(lambda: len(load.answers) > CLIENTS, timeout_s=30, what="requests are answered")
        yield load


def kill(server: Server, title: str) -> None:
    """Kill a process, and wait until another has replaced it and the server is ready."""
    victim = server.processes(title)[0]
    count = len(server.processes(title))
    os.kill(victim, signal.SIGKILL)
    wait_for(
        lambda: len([pid for pid in server.processes(title) if pid != victim]) >= count,
        timeout_s=200,
        what=f"another {title} runs",
    )
    wait_for(
        lambda: answers(f"{server.plumbing_url}/ready"), timeout_s=200, what="the server is ready"
    )


def wait_for_more_answers(load: Load) -> None:
    """Wait until there are three more answers per client."""
    before = len(load.answers)
    wait_for(
        lambda: len(load.answers) > before + 3 * CLIENTS,
        timeout_s=120,
        what="more requests are answered",
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", [MODEL, CONTROLLER])
def test_killing_a_model_replica_or_controller_fails_nothing(
    server: Server, load: Load, title: str
) -> None:
    kill(server, title)
    wait_for_more_answers(load)

    print(f"{server.mode}, {title}: {load}")
    assert set(load.statuses) == {200}


@pytest.mark.timeout(600)
def test_killing_an_ingress_fails_at_most_its_own_requests(server: Server, load: Load) -> None:
    """HAProxy resends them to the other replica. Ray's default proxy answers 503, which clients may retry."""
    wait_for(lambda: len(server.processes(INGRESS)) == 2, timeout_s=200, what="two replicas run")
    kill(server, INGRESS)
    wait_for_more_answers(load)

    print(f"{server.mode}, ingress: {load}")
    if server.mode == "throughput":
        assert set(load.statuses) == {200}
    else:
        assert set(load.statuses) <= {200, 503}
        assert load.statuses[503] <= CLIENTS


@pytest.mark.timeout(600)
def test_a_killed_proxy_breaks_connections_but_recovers(server: Server, load: Load) -> None:
    """Nothing else listens on its port, and a new HAProxy answers 503 until it knows its replicas."""
    proxy = "ray::ProxyActor" if server.mode == "default" else haproxy_binary({})
    assert proxy is not None
    kill(server, proxy)
    wait_for_more_answers(load)

    print(f"{server.mode}, proxy: {load}; longest gap {load.longest_gap_s:.1f} s")
    assert set(load.statuses) <= ({200, LOST} if server.mode == "default" else {200, LOST, 503})
    assert post(server.plumbing_url, {"input": "fine"}).status_code == 200
