"""What a running server listens on is what SECURITY.md says, and what others reach of it asks for Ray's token."""

import contextlib
import ipaddress
from dataclasses import dataclass

import grpc
import psutil
import pytest
import requests

from serve_app.cli.process_group import session_members
from tests.support.server import Server, wait_for

pytestmark = pytest.mark.both_modes

# A method of each kind of Ray's servers; one that a port does not have is unknown there, before any token is looked at.
METHODS = (
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.rpc.LogService/ListLogs",
    "/ray.serve.ASGIService/HandleRequest",
)


@dataclass(frozen=True, slots=True)
class Listener:
    """A port that a process of the server has opened.

    Attributes:
        process: its title.
        address: the local one.
        port: the number.
    """

    process: str
    address: str
    port: int

    @property
    def is_for_others(self) -> bool:
        """Whether other machines reach it."""
        return not ipaddress.ip_address(self.address).is_loopback

    @property
    def url(self) -> str:
        """Where it is for HTTP."""
        return f"{'127.0.0.1' if self.address in ('::', '0.0.0.0') else self.address}:{self.port}"


def listeners(server: Server) -> list[Listener]:
    """Return all of them."""
    found: list[Listener] = []
    for pid in session_members(server.session.process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            process = psutil.Process(pid)
            title = process.cmdline()[0].split("/")[-1]
            found += [
                Listener(title, connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
    return found


def answer_to_a_stranger(listener: Listener) -> str:
    """Return what somebody without a token gets: over gRPC, over HTTP, or as metrics."""
    with grpc.insecure_channel(listener.url) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=5)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    return "needs the token"
            else:
                return "open"
    try:
        if requests.get(f"http://{listener.url}/metrics", timeout=5).ok:
            return "metrics"
        api = requests.get(f"http://{listener.url}/api/serve/applications/", timeout=5)
    except requests.RequestException:
        return "speaks neither"
    return "needs the token" if api.status_code == 401 else f"open, {api.status_code}"


def test_others_reach_nothing_without_the_token_but_ray_s_metrics(server: Server) -> None:
    """Where `http_options.host` is this machine's own address; whoever talks to Ray may run code."""
    answers: dict[Listener, str] = {}

    def is_settled() -> bool:
        # A process that starts, ends or is busy is asked again.
        outside = [listener for listener in listeners(server) if listener.is_for_others]
        answers.clear()
        answers.update({listener: answer_to_a_stranger(listener) for listener in outside})
        is_open = [answer for answer in answers.values() if answer.startswith("open")]
        return bool(is_open) or "speaks neither" not in answers.values()

    wait_for(is_settled, timeout_s=60, what="an answer of every port")

    assert len(answers) > 5
    assert set(answers.values()) == {"needs the token", "metrics"}, answers
    assert sum(answer == "metrics" for answer in answers.values()) == 3


def test_what_speaks_http_to_clients_is_on_the_host_that_is_set(server: Server) -> None:
    """HAProxy's own pages, the proxies and the ingress replicas."""
    inside = {listener.port for listener in listeners(server) if not listener.is_for_others}

    assert int(server.url.rsplit(":", 1)[1]) in inside
    if server.mode == "throughput":
        assert {8404, 9101, 8500} <= inside
        assert any(port >= 30_000 for port in inside)
