"""A running server listens on the ports listed in SECURITY.md, and ports open to others require Ray's token."""

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
import requests

from serve_app.cli.process_group import session_members
from tests.support.applications import GUARDED
from tests.support.server import Server, needs_ipv6, running_server, wait_for

pytestmark = pytest.mark.both_modes  # of the tests that use the server

# One method of each of Ray's gRPC services. A port rejects the methods of other services before it checks the token.
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
    """A listening TCP socket of one of the server's processes.

    Attributes:
        process: the title of the process.
        address: the local IP address.
        port: the port number.
    """

    process: str
    address: str
    port: int

    @property
    def is_external(self) -> bool:
        """Whether other machines can connect to it."""
        return not ipaddress.ip_address(self.address).is_loopback

    @property
    def target(self) -> str:
        """The address and port to connect to."""
        return f"{'127.0.0.1' if self.address in ('::', '0.0.0.0') else self.address}:{self.port}"


def listeners(server: Server) -> list[Listener]:
    """Return all listening sockets of the server's processes."""
    result: list[Listener] = []
    for pid in session_members(server.session.process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # the process has ended since
            process = psutil.Process(pid)
            title = process.cmdline()[0].split("/")[-1]
            result += [
                Listener(title, connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
    return result


def probe_without_token(listener: Listener) -> str:
    """Describe how a port answers a client without the token, over gRPC and over HTTP."""
    with grpc.insecure_channel(listener.target) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=5)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    return "needs the token"
            else:
                return "open"
    try:
        if requests.get(f"http://{listener.target}/metrics", timeout=5).ok:
            return "metrics"
        api = requests.get(f"http://{listener.target}/api/serve/applications/", timeout=5)
    except requests.RequestException:
        return "speaks neither"
    return "needs the token" if api.status_code == 401 else f"open, {api.status_code}"


def test_without_the_token_others_reach_only_metrics(server: Server) -> None:
    """The server's HTTP host is a loopback address here. Anyone who can talk to Ray can run code."""
    answers: dict[Listener, str] = {}

    def is_settled() -> bool:
        # Ports of processes that are starting, ending or busy are probed again.
        external = [listener for listener in listeners(server) if listener.is_external]
        answers.clear()
        answers.update({listener: probe_without_token(listener) for listener in external})
        is_open = any(answer.startswith("open") for answer in answers.values())
        return is_open or "speaks neither" not in answers.values()

    wait_for(is_settled, timeout_s=60, what="every external port answers")

    assert len(answers) > 5
    assert set(answers.values()) == {"needs the token", "metrics"}, answers
    assert list(answers.values()).count("metrics") == 3


def test_http_listens_only_on_the_configured_host(server: Server) -> None:
    internal = {listener.port for listener in listeners(server) if not listener.is_external}

    assert int(server.url.rsplit(":", 1)[1]) in internal
    if server.mode == "throughput":
        # HAProxy's statistics and metrics, Ray's fallback proxy, and the ingress replicas.
        assert {8404, 9101, 8500} <= internal
        assert any(port >= 30_000 for port in internal)


@pytest.mark.slow
@needs_ipv6
def test_host_0_listens_at_ipv4_and_ipv6(cache: Path) -> None:
    """Through Ray's default proxy. The unit tests show the same for HAProxy."""
    config = {"applications": [GUARDED]}

    with running_server(config, mode="default", cache=cache, host="::0") as server:
        urls = [server.url, server.url.replace("127.0.0.1", "[::1]")]

        assert all(requests.get(f"{url}/guarded/health", timeout=30).ok for url in urls)
