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
    """Answers each GET with the next of its replies, and with the last one ever after."""

    def __init__(self, *replies: tuple[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.replies = list(replies)
        self.asked: list[tuple[str, str | None]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        replies = self.server.replies
        status, body = replies.pop(0) if len(replies) > 1 else replies[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keep the terminal clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that is not ready at once."""
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
    """Ray Serve's account of one application: status and message by deployment."""
    described = {
        name: {"name": name, "status": status, "message": message}
        for name, (status, message) in deployments.items()
    }
    app = {"status": app_status, "message": "cannot go on", "deployments": described}
    return {"applications": {"embeddings": app}}


@pytest.mark.parametrize(
    ("account", "told"),
    [
        (None, "starting Ray"),
        ({"applications": {}}, "starting Ray Serve"),
        (details("DEPLOYING"), "reading the application"),
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
        (details("RUNNING", model=("HEALTHY", "")), "waiting for the first answer"),
    ],
)
def test_a_start_has_stages(account: object, told: str) -> None:
    """Each names what is waited for, with Serve's own remark on it."""
    assert stage(account) == told


def test_a_failed_application_tells_why() -> None:
    """With the last lines of what its deployments say, where the error is."""
    traceback = "\n".join(["Traceback", *["  File"] * 50, "ValueError: no such model"])
    account = details("DEPLOY_FAILED", model=("DEPLOY_FAILED", traceback), ingress=("HEALTHY", "x"))

    with pytest.raises(StartError) as error:
        stage(account)

    message = str(error.value)
    assert "cannot go on" in message
    assert message.endswith("ValueError: no such model")
    assert "Traceback" not in message


def test_the_wait_ends_when_the_server_is_ready(server: Server, session: Session) -> None:
    """Not with its first answer."""
    address = Address("127.0.0.1", server.server_port, "/embed")
    told: list[str] = []

    ready = wait_until_ready(
        session, address, stopping=lambda: False, details=lambda: None, say=told.append
    )

    assert ready
    assert told == ["starting Ray"]
    assert [path for path, _ in server.asked] == ["/embed/ready", "/embed/ready"]


def test_the_wait_ends_when_nobody_waits_any_more(session: Session) -> None:
    """By Ctrl-C in the middle of a start."""
    ready = wait_until_ready(
        session, Address("127.0.0.1", 1), stopping=lambda: True, details=dict, say=print
    )

    assert not ready


def test_the_wait_ends_when_the_command_does(tmp_path: Path) -> None:
    """With what it wrote last."""
    script = "raise SystemExit('the config is wrong')"
    session = Session.start([sys.executable, "-c", script], os.environ, tmp_path / "log")
    session.process.wait()

    with pytest.raises(StartError, match="the config is wrong"):
        wait_until_ready(
            session,
            Address("127.0.0.1", 1),
            stopping=lambda: False,
            details=lambda: None,
            say=print,
        )


def test_details_come_from_the_dashboard_that_ray_named(server: Server) -> None:
    """With Ray's token; an answer that is none counts as no account."""
    output = f"Started. View the dashboard at http://127.0.0.1:{server.server_port} \nmore"

    first, second = serve_details(output, "secret"), serve_details(output, "secret")

    assert (first, second) == (None, {})
    assert server.asked[0] == ("/api/serve/applications/", "Bearer secret")


def test_there_are_no_details_before_there_is_a_dashboard() -> None:
    """Ray has not said yet where it is."""
    assert serve_details("Running config file", "") is None


def test_nobody_who_answers_is_no_answer() -> None:
    """A port on which nobody listens is what a start begins with."""
    assert ask("127.0.0.1", 1, "/") is None


def test_the_token_is_the_one_that_ray_takes(tmp_path: Path) -> None:
    """From the environment, or the file that it names; no file is no token."""
    path = tmp_path / "token"
    path.write_text("from-file\n")

    assert dashboard_token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": "x"}) == "given"
    assert dashboard_token({"RAY_AUTH_TOKEN_PATH": str(path)}) == "from-file"
    assert dashboard_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) == ""


def test_progress_is_told_when_it_changes_and_now_and_then() -> None:
    """A start that takes long is seen to be alive, and is not a flood of lines."""
    told: list[str] = []
    times = iter([100.0, 100.0, 101.0, 104.0, 113.0, 114.0])
    progress = Progress(told.append, clock=lambda: next(times))

    for what in ("a", "a", "b", "b", "b"):
        progress(what)

    assert [line.split() for line in told] == [
        ["0", "s", "a"],
        ["4", "s", "b"],
        ["14", "s", "b"],
    ]


def test_an_address_ends_without_a_slash() -> None:
    """Paths are put behind it."""
    assert Address("localhost", 8000, "/embed").url == "http://localhost:8000/embed"


def test_the_folder_of_a_cluster_is_that_of_the_process_that_started_it(tmp_path: Path) -> None:
    """Also where others have started theirs before and after."""
    sessions = [tmp_path / "ray" / f"session_2026-01-0{n}_00-00-00_000000_{n}23" for n in (1, 2, 3)]
    for number, session in enumerate(sessions):
        session.mkdir(parents=True)
        (session / "gcs_server_port_abc").write_text(f"4000{number}\n")
    (tmp_path / "ray" / "session_latest").symlink_to(sessions[2])
    env = {"RAY_TMPDIR": str(tmp_path)}

    own, latest = ray_folder(env, 223), ray_folder(env, 999)

    assert (own, latest) == (sessions[1], sessions[2])
    assert ray_address(own) == "127.0.0.1:40001"


def test_a_cluster_whose_address_is_not_written_is_looked_for(tmp_path: Path) -> None:
    """As Ray itself does."""
    assert ray_address(tmp_path / "none") == "auto"
