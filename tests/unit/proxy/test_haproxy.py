"""Tests of the patched HAProxy config: the one that the installed Ray writes, run by a real HAProxy."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig

from serve_app.cli.environment import read_env_file
from serve_app.proxy.environment import haproxy_binary
from serve_app.proxy.haproxy import UnsupportedConfigError, patch_config, write_answers
from tests.support.http import FLAT_ERROR_KEYS
from tests.support.server import ROOT, free_port, needs_ipv6

needs_haproxy = pytest.mark.skipif(
    haproxy_binary({}) is None, reason="no HAProxy binary runs on this machine"
)


ENVIRONMENT = read_env_file((ROOT / "throughput.env").read_text())


def render(
    folder: Path, *, host: str = "127.0.0.1", port: int = 18000, replica: int | None = None
) -> str:
    """Return the config that the installed Ray writes, for one application with one replica or for none."""
    settings = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        stats_port=free_port(),
        metrics_port=free_port(),
        bufsize=int(ENVIRONMENT["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
    )
    settings.http_options.host = host
    settings.http_options.port = port
    backends = {}
    if replica is not None:
        servers = [ServerConfig("replica", "127.0.0.1", replica)]
        backends["http-embeddings"] = BackendConfig(
            name="http-embeddings", path_prefix="/", servers=servers, app_name="embeddings"
        )
    path = folder / "haproxy.cfg"
    HAProxyApi(settings, backends, str(path))._generate_config_file_internal()
    return path.read_text()


@pytest.fixture
def starting(tmp_path: Path) -> str:
    """The config while no application is deployed."""
    return render(tmp_path)


@pytest.fixture
def running(tmp_path: Path) -> str:
    """The config with an application."""
    return render(tmp_path, replica=30000)


@needs_haproxy
@pytest.mark.parametrize("name", ["starting", "running"])
def test_haproxy_accepts_the_patched_config(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    write_answers(tmp_path)
    (tmp_path / "haproxy.cfg").write_text(patch_config(request.getfixturevalue(name), tmp_path))

    done = subprocess.run(
        [haproxy_binary({}) or "", "-c", "-f", tmp_path / "haproxy.cfg"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "tune.bufsize",
        "retry-on",
        "errorfile",
        "frontend http_frontend",
        "http-request return status 404 content-type text/plain",
        "frontend prometheus",
        "listen stats",
    ],
)
def test_a_config_of_another_ray_is_an_error(tmp_path: Path, running: str, text: str) -> None:
    """The error names Ray's version and the line that the patch looks for."""
    last_word = text.split()[-1].replace(".", r"\.")  # the error has a regular expression

    with pytest.raises(UnsupportedConfigError, match=r"Ray [\d.]+ is not supported") as error:
        patch_config(running.replace(text, "another"), tmp_path)

    assert last_word in str(error.value)


def test_a_config_with_a_line_twice_is_an_error(tmp_path: Path, running: str) -> None:
    with pytest.raises(UnsupportedConfigError, match="2 matches"):
        patch_config(running + "    retry-on all-retryable-errors\n", tmp_path)


def test_a_patched_config_is_left_as_it_is(tmp_path: Path, running: str) -> None:
    patched = patch_config(running, tmp_path)

    assert patch_config(patched, tmp_path) == patched


def test_responses_have_the_configured_error_format(tmp_path: Path) -> None:
    write_answers(tmp_path, error_format="openai")

    assert set(error_in(tmp_path / "503.http")) == {"error"}

    write_answers(tmp_path, error_format="auto")

    assert "error_type" in error_in(tmp_path / "503.http")


def error_in(path: Path) -> dict[str, Any]:
    """Return the body of a response that HAProxy sends from a file."""
    error: dict[str, Any] = json.loads(path.read_bytes().partition(b"\r\n\r\n")[2])
    return error


@pytest.mark.parametrize(("name", "status"), [("starting", 503), ("running", 404)])
def test_unknown_paths_are_404_once_an_application_runs(
    tmp_path: Path, name: str, status: int, request: pytest.FixtureRequest
) -> None:
    write_answers(tmp_path)

    patched = patch_config(request.getfixturevalue(name), tmp_path)

    backend = patched.partition("\nbackend default_backend\n")[2].splitlines()[0]
    assert backend.split() == [
        "http-request",
        "return",
        "status",
        str(status),
        "default-errorfiles",
    ]
    assert error_in(tmp_path / f"{status}.http")["error_type"]


def test_a_dead_replica_is_503_with_retry_after(tmp_path: Path) -> None:
    write_answers(tmp_path)

    head, _, body = (tmp_path / "502.http").read_bytes().partition(b"\r\n\r\n")

    lines = head.decode().lower().splitlines()
    assert lines[0] == "http/1.1 503 service unavailable"
    assert {"content-type: application/json", "retry-after: 1"} <= set(lines)
    assert f"content-length: {len(body)}" in lines
    assert json.loads(body)["error"] == "Model is unavailable"


def test_the_rest_of_the_config_is_unchanged(tmp_path: Path, running: str) -> None:
    patched = patch_config(running, tmp_path).splitlines()

    replaced = ("errorfile", "retry-on", "bind ")
    kept = [
        line
        for line in running.splitlines()
        if not line.strip().startswith(replaced) and "text/plain lf-string" not in line
    ]
    lines = iter(patched)
    assert all(line in lines for line in kept)  # in this order


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.5"])
def test_operators_pages_listen_on_one_address(tmp_path: Path, running: str, host: str) -> None:
    patched = patch_config(running, tmp_path, stats_host=host)

    binds = [line.split()[1] for line in patched.splitlines() if line.strip().startswith("bind")]
    assert [bind.rpartition(":")[0] for bind in binds] == [host, "127.0.0.1", host]


@needs_haproxy
@pytest.mark.usefixtures("starting")
def test_the_command_patches_the_config_and_execs_haproxy(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"

    done = subprocess.run(
        [sys.executable, "-m", "serve_app.proxy.haproxy", "-c", "-f", config],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f"errorfile 503 {tmp_path}/503.http" in config.read_text()


def test_the_command_fails_on_a_config_of_another_ray(tmp_path: Path, running: str) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(running.replace("retry-on", "retry-when"))

    done = subprocess.run(
        [sys.executable, "-m", "serve_app.proxy.haproxy", "-c", "-f", config],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "is not supported with HAProxy" in done.stderr or "no HAProxy binary" in done.stderr


# A real HAProxy.


class Replica(BaseHTTPRequestHandler):
    """Answers every request with what it received, after a pause if the path is `/slow`."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        if self.path == "/slow":
            time.sleep(1)
        seen = {"method": self.command, "headers": sorted(map(str.lower, self.headers))}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815  # the base class names them

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@dataclass
class Response:
    """A response, read from a socket."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


def exchange(port: int, request: bytes, *, half_close: bool = False) -> Response:
    """Send bytes to HAProxy, and read the response until the connection ends or is idle."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while b"\r\n\r\n" not in received or len(received) < _length(received):
            chunk = connection.recv(65_536)
            if not chunk:
                break
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Response(int(status.split()[1]), headers, body)


def _length(received: bytes) -> int:
    head, _, _ = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line.split(b":")[1])
    return 0


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an HAProxy with the patched config, in front of one replica, at all addresses."""
    binary = haproxy_binary({})
    if binary is None:
        pytest.skip("no HAProxy binary runs on this machine")
    folder, port = tmp_path_factory.mktemp("haproxy"), free_port()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("http.client._MAXHEADERS", 1000)  # of the replica's server
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    write_answers(folder)
    config = patch_config(
        render(folder, host="::0", port=port, replica=replica.server_port), folder
    )
    (folder / "haproxy.cfg").write_text(config)
    process = subprocess.Popen(
        [binary, "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_up(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)
        replica.shutdown()
        replica.server_close()
        monkeypatch.undo()


def _wait_until_up(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if exchange(port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("HAProxy does not answer")


def request(method: str = "GET", target: str = "/", **headers: str) -> bytes:
    """Return the bytes of a request without a body."""
    lines = [f"{method} {target} HTTP/1.1", "host: a", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def assert_error(response: Response, status: int, code: str) -> None:
    """Check that a response is an error in the flat format, with a request id."""
    assert (response.status, response.headers["content-type"]) == (status, "application/json")
    error = json.loads(response.body)
    assert error.keys() == FLAT_ERROR_KEYS
    assert error["code"] == code
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_host_0_listens_at_ipv4_and_ipv6(proxy: int, host: str) -> None:
    socket.create_connection((host, proxy), timeout=10).close()


@pytest.mark.parametrize("size", [100, 15_000, 32_000, 60_000])
def test_large_heads_reach_the_server(proxy: int, size: int) -> None:
    """The server rejects heads of more than 32 KiB itself, with the client's id and in its format."""
    response = exchange(proxy, request(authorization="Bearer " + "a" * size))

    assert response.status == 200


def test_more_headers_than_the_server_accepts_reach_it(proxy: int) -> None:
    response = exchange(proxy, request(**{f"x-{number}": "1" for number in range(600)}))

    assert response.status == 200
    assert len(json.loads(response.body)["headers"]) >= 600


@pytest.mark.parametrize("method", ["BREW", "post", "get"])
def test_an_unknown_method_becomes_one_that_no_operation_has(proxy: int, method: str) -> None:
    response = exchange(proxy, request(method))

    assert json.loads(response.body)["method"] == "PATCH"


@pytest.mark.parametrize(
    ("method", "offer", "is_kept"),
    [("GET", "h2c", False), ("POST", "websocket", False), ("GET", "WebSocket", True)],
)
def test_only_offers_of_websocket_are_kept(
    proxy: int, method: str, offer: str, *, is_kept: bool
) -> None:
    head = f"{method} / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {offer}\r\n"
    key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"

    response = exchange(proxy, (head + key).encode())

    assert ("upgrade" in json.loads(response.body)["headers"]) == is_kept


def test_a_client_that_closes_its_sending_side_gets_an_error_in_json(proxy: int) -> None:
    response = exchange(proxy, request(target="/slow"), half_close=True)

    assert_error(response, 400, "invalid_http")
