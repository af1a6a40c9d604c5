"""Waits until a starting server is ready, and reports its progress.

It polls the server's `/ready`. It also polls Ray's dashboard for the current startup stage or the
reason for a failure. This module does not start or stop processes.
"""

import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.cli.process_group import COLOUR, Session

_DASHBOARD = re.compile(r"dashboard at .*?http://([^:/\s]+):(\d+)")
_REASON_LINES = 15
_REPEAT_S = 10.0
_TICK_S = 0.25


class StartError(Exception):
    """The server did not start, or stopped on its own. The message is printed to the terminal."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address at which this machine reaches the application."""

    host: str
    port: int
    prefix: str = ""

    @property
    def url(self) -> str:
        """The application's root, without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.prefix}"


class Progress:
    """Prints the current startup stage: whenever it changes, and every ten seconds."""

    def __init__(
        self, print_status: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._print_status = print_status
        self._clock = clock
        self._started_at = clock()
        self._last_status = ""
        self._last_printed_s = 0.0

    def __call__(self, status: str) -> None:
        """Print the status, unless the same status was printed in the last ten seconds."""
        elapsed_s = self._clock() - self._started_at
        if status != self._last_status or elapsed_s - self._last_printed_s >= _REPEAT_S:
            self._last_status = status
            self._last_printed_s = elapsed_s
            self._print_status(f"{elapsed_s:4.0f} s  {status}")


def wait_until_ready(
    session: Session,
    address: Address,
    *,
    stopping: Callable[[], bool],
    details: Callable[[], Any],
    report: Callable[[str], None],
) -> bool:
    """Wait until every model can embed.

    Args:
        session: The server process. If it exits, StartError is raised.
        address: The server's address.
        stopping: Returns True to end the wait.
        details: Returns the status of Ray Serve's applications, as `serve_details` does.
        report: Called with the current startup stage at each poll.

    Returns:
        True if the server is ready, False if `stopping` ended the wait.

    Raises:
        StartError: The server exited, or an application failed.
    """
    while not stopping():
        if session.has_ended():
            raise StartError(f"`serve run` exited:\n{_tail(session.output())}")
        ready = ask(address.host, address.port, f"{address.prefix}/ready")
        if ready is not None and ready[0] == 200:
            return True
        report(stage(details()))
        time.sleep(_TICK_S)
    return False


def stage(details: Any) -> str:
    """Describe the current startup stage in a few words.

    Args:
        details: The status of Ray Serve's applications, or None if it is not available yet.

    Raises:
        StartError: An application failed. The message contains Ray Serve's reason.
    """
    if details is None:
        return "starting Ray"
    apps = details["applications"].values()
    for app in apps:
        if app["status"] == "DEPLOY_FAILED":
            raise StartError(_reason(app))
    deployments = [deployment for app in apps for deployment in app["deployments"].values()]
    if not deployments:
        return "loading the application" if apps else "starting Ray Serve"
    waiting = [d for d in deployments if d["status"] != "HEALTHY"]
    if not waiting:
        return "waiting for the first response"
    notes = [COLOUR.sub("", d["message"]).splitlines()[0] for d in waiting if d["message"]]
    return ": ".join([f"starting {', '.join(d['name'] for d in waiting)}", *notes[:1]])


def _reason(app: Any) -> str:
    failed = [d for d in app["deployments"].values() if d["status"] == "DEPLOY_FAILED"]
    messages = [app["message"], *(d["message"] for d in failed)]
    return "\n".join(["The application failed:", *map(_tail, messages)])


def _tail(text: str) -> str:
    return "\n".join(COLOUR.sub("", text).strip().splitlines()[-_REASON_LINES:])


def ask(host: str, port: int, path: str, token: str = "") -> tuple[int, bytes] | None:
    """Send a GET request and return the response's status and body, or None if nothing responds.

    Proxies that the environment configures are bypassed.
    """
    connection = http.client.HTTPConnection(host, port, timeout=2)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def serve_details(output: str, token: str) -> Any:
    """Return the status of Ray Serve's applications, or None if it is not available yet.

    Args:
        output: The output of `serve run`, which contains the dashboard's address.
        token: The token for Ray's API.
    """
    dashboard = _DASHBOARD.search(output)
    if dashboard is None:
        return None
    response = ask(dashboard[1], int(dashboard[2]), "/api/serve/applications/", token)
    return json.loads(response[1]) if response is not None and response[0] == 200 else None


def dashboard_url(output: str) -> str:
    """Return the dashboard's URL from the output of `serve run`, or Ray's default URL."""
    dashboard = _DASHBOARD.search(output)
    return f"http://{dashboard[1]}:{dashboard[2]}" if dashboard else "http://127.0.0.1:8265"


def dashboard_token(env: Mapping[str, str]) -> str:
    """Return the token for Ray's API from the place where Ray stores it, or "" if there is none."""
    path = env.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return env.get("RAY_AUTH_TOKEN") or Path(path).read_text().strip()
    except OSError:
        return ""


def ray_folder(env: Mapping[str, str], pid: int) -> Path:
    """Return the session folder of the Ray cluster that the process `pid` started.

    If there is none, return the session folder of the latest cluster.
    """
    base = env.get("RAY_TMPDIR") or env.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's default
    own = Path(base, "ray").glob(f"session_*_{pid}")
    return next(own, Path(base, "ray", "session_latest").resolve())


def ray_address(folder: Path) -> str:
    """Return the address, for `ray.init`, of the cluster with this session folder.

    If the folder does not contain the address, return `auto`.
    """
    ports = [path.read_text().strip() for path in folder.glob("gcs_server_port_*")]
    return f"127.0.0.1:{ports[0]}" if ports else "auto"
