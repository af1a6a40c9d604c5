import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.process_group import Session
from serve_app.cli.readiness import (
    Address,
    Progress,
    StartError,
    ask,
    dashboard_token,
    ray_address,
    ray_folder,
    serve_details,
    stage,
    wait_until_ready,
)


class Server(HTTPServer):
    """Answers each GET with the next of its replies, and repeats the last one."""

    def __init__(self, *replies: tuple[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.replies = list(replies)
        self.requests: list[tuple[str, str | None]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Authorization"]))
        replies = self.server.replies
        status, body = replies.pop(0) if len(replies) > 1 else replies[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keep the terminal clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that is ready at the second request."""
    with Server((503, ""), (200, "{}")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A command that runs until it is stopped."""
    script = "import signal; signal.pause()"
    session = Session.start([sys.executable, "-c", script], os.environ, tmp_path / "log")
    yield session
    session.stop(lambda: True, grace_s=0)


def details(app_status: str, **deployments: tuple[str, str]) -> dict[str, Any]:
    """Return Ray Serve's status of one application, with the status and message of each deployment."""
    described = {
        name: {"name": name, "status": status, "message": message}
        for name, (status, message) in deployments.items()
    }
    app = {"status": app_status, "message": "cannot go on", "deployments": described}
    return {"applications": {"embeddings": app}}


@pytest.mark.parametrize(
    ("status", "description"),
    [
        (None, "starting Ray"),
        ({"applications": {}}, "starting Ray Serve"),
        (details("DEPLOYING"), "loading the application"),
        (
            details("DEPLOYING", model=("UPDATING", ""), ingress=("UPDATING", "")),
            "starting model, ingress",
        ),
        (
            details("DEPLOYING", model=("UPDATING", ""), ingress=("HEALTHY", "")),
            "starting model",
        ),
        (
            details("DEPLOYING", model=("UPDATING", "\x1b[36mno CPU is free.\x1b[0m\nmore")),
            "starting model: no CPU is free.",
        ),
        (details("RUNNING", model=("HEALTHY", "")), "waiting for the first response"),
    ],
)
def test_stage_describes_the_start(status: object, description: str) -> None:
    assert stage(status) == description


def test_a_failed_application_is_an_error_with_a_reason() -> None:
    traceback = "\n".join(["Traceback", *["  File"] * 50, "ValueError: no such model"])
    status = details("DEPLOY_FAILED", model=("DEPLOY_FAILED", traceback), ingress=("HEALTHY", "x"))

    with pytest.raises(StartError) as error:
        stage(status)

    message = str(error.value)
    assert "cannot go on" in message
    assert message.endswith("ValueError: no such model")
    assert "Traceback" not in message


def test_the_wait_ends_when_the_server_is_ready(server: Server, session: Session) -> None:
    address = Address("127.0.0.1", server.server_port, "/embed")
    reported: list[str] = []

    ready = wait_until_ready(
        session, address, stopping=lambda: False, details=lambda: None, report=reported.append
    )

    assert ready
    assert reported == ["starting Ray"]
    assert [path for path, _ in server.requests] == ["/embed/ready", "/embed/ready"]


def test_the_wait_ends_on_a_request_to_stop(session: Session) -> None:
    ready = wait_until_ready(
        session, Address("127.0.0.1", 1), stopping=lambda: True, details=dict, report=print
    )

    assert not ready


def test_the_wait_fails_when_the_command_exits(tmp_path: Path) -> None:
    script = "raise SystemExit('the config is wrong')"
    session = Session.start([sys.executable, "-c", script], os.environ, tmp_path / "log")
    session.process.wait()

    with pytest.raises(StartError, match="the config is wrong"):
        wait_until_ready(
            session,
            Address("127.0.0.1", 1),
            stopping=lambda: False,
            details=lambda: None,
            report=print,
        )


def test_details_come_from_the_dashboard_in_the_output(server: Server) -> None:
    output = f"Started. View the dashboard at http://127.0.0.1:{server.server_port} \nmore"

    first, second = serve_details(output, "secret"), serve_details(output, "secret")

    assert (first, second) == (None, {})
    assert server.requests[0] == ("/api/serve/applications/", "Bearer secret")


def test_details_are_none_before_the_dashboard_starts() -> None:
    assert serve_details("Running config file", "") is None


def test_a_closed_port_gives_no_response() -> None:
    assert ask("127.0.0.1", 1, "/") is None


def test_the_token_comes_from_the_same_places_as_in_ray(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")

    assert dashboard_token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": "x"}) == "given"
    assert dashboard_token({"RAY_AUTH_TOKEN_PATH": str(path)}) == "from-file"
    assert dashboard_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) == ""


def test_progress_is_printed_on_changes_and_periodically() -> None:
    printed: list[str] = []
    times = iter([100.0, 100.0, 101.0, 104.0, 113.0, 114.0])
    progress = Progress(printed.append, clock=lambda: next(times))

    for status in ("a", "a", "b", "b", "b"):
        progress(status)

    assert [line.split() for line in printed] == [
        ["0", "s", "a"],
        ["4", "s", "b"],
        ["14", "s", "b"],
    ]


def test_the_url_of_an_address_has_no_trailing_slash() -> None:
    assert Address("localhost", 8000, "/embed").url == "http://localhost:8000/embed"
    assert Address("::1", 8000).url == "http://[::1]:8000"


def test_ray_folder_finds_the_cluster_of_a_process(tmp_path: Path) -> None:
    sessions = [tmp_path / "ray" / f"session_2026-01-0{n}_00-00-00_000000_{n}23" for n in (1, 2, 3)]
    for number, session in enumerate(sessions):
        session.mkdir(parents=True)
        (session / "gcs_server_port_abc").write_text(f"4000{number}\n")
    (tmp_path / "ray" / "session_latest").symlink_to(sessions[2])
    env = {"RAY_TMPDIR": str(tmp_path)}

    own, latest = ray_folder(env, 223), ray_folder(env, 999)

    assert (own, latest) == (sessions[1], sessions[2])
    assert ray_address(own) == "127.0.0.1:40001"


def test_a_cluster_without_an_address_file_is_auto(tmp_path: Path) -> None:
    assert ray_address(tmp_path / "none") == "auto"
