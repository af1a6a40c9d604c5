"""How a start is coming along: asked of the server itself, and of Ray Serve for what it waits for or why it failed.

Speaks HTTP to both. Starts and stops nothing.
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
    """Why the server did not come up, or did not stay up; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the application is reached from this machine."""

    host: str
    port: int
    prefix: str = ""

    @property
    def url(self) -> str:
        """The root of the application, without a slash at its end."""
        return f"http://{self.host}:{self.port}{self.prefix}"


class Progress:
    """Prints what is being waited for: when it changes, and every ten seconds."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.print_status = say
        self._clock = clock
        self._began = clock()
        self._told = ("", 0.0)

    def __call__(self, what: str) -> None:
        """Tell it, unless it was told a moment ago."""
        elapsed = self._clock() - self._began
        if what != self._told[0] or elapsed - self._told[1] >= _REPEAT_S:
            self._told = (what, elapsed)
            self.print_status(f"{elapsed:4.0f} s  {what}")


def wait_until_ready(
    session: Session,
    address: Address,
    *,
    stopping: Callable[[], bool],
    details: Callable[[], Any],
    say: Callable[[str], None],
) -> bool:
    """Wait until every model can embed, saying what is being waited for.

    Args:
        session: the server; the wait ends when it does.
        address: where it will answer.
        stopping: whether nobody waits for it any more.
        details: asks for Ray Serve's own account of its applications, as `serve_details` does.
        say: is told at each look.

    Returns:
        False if the wait was ended by `stopping`.

    Raises:
        StartError: it will not become ready.
    """
    while not stopping():
        if session.has_ended():
            raise StartError(f"`serve run` ended:\n{_tail(session.output())}")
        ready = ask(address.host, address.port, f"{address.prefix}/ready")
        if ready is not None and ready[0] == 200:
            return True
        say(stage(details()))
        time.sleep(_TICK_S)
    return False


def stage(details: Any) -> str:
    """Say in a few words what the start is waiting for.

    Args:
        details: Ray Serve's own account of its applications, or None before there is one.

    Raises:
        StartError: an application failed, with Serve's reason.
    """
    if details is None:
        return "starting Ray"
    apps = details["applications"].values()
    for app in apps:
        if app["status"] == "DEPLOY_FAILED":
            raise StartError(_reason(app))
    deployments = [deployment for app in apps for deployment in app["deployments"].values()]
    if not deployments:
        return "reading the application" if apps else "starting Ray Serve"
    waiting = [d for d in deployments if d["status"] != "HEALTHY"]
    if not waiting:
        return "waiting for the first answer"
    notes = [COLOUR.sub("", d["message"]).splitlines()[0] for d in waiting if d["message"]]
    return ": ".join([f"starting {', '.join(d['name'] for d in waiting)}", *notes[:1]])


def _reason(app: Any) -> str:
    failed = [d for d in app["deployments"].values() if d["status"] == "DEPLOY_FAILED"]
    messages = [app["message"], *(d["message"] for d in failed)]
    return "\n".join(["The application failed:", *map(_tail, messages)])


def _tail(text: str) -> str:
    return "\n".join(COLOUR.sub("", text).strip().splitlines()[-_REASON_LINES:])


def ask(host: str, port: int, path: str, token: str = "") -> tuple[int, bytes] | None:
    """GET a path directly, past any proxy that the environment names; None if nobody answers."""
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
    """Return Serve's account of its applications, from the dashboard that `serve run` named; None without one."""
    dashboard = _DASHBOARD.search(output)
    if dashboard is None:
        return None
    answer = ask(dashboard[1], int(dashboard[2]), "/api/serve/applications/", token)
    return json.loads(answer[1]) if answer is not None and answer[0] == 200 else None


def dashboard_url(output: str) -> str:
    """Return where the dashboard is that `serve run` named; Ray's default address if it named none."""
    dashboard = _DASHBOARD.search(output)
    return f"http://{dashboard[1]}:{dashboard[2]}" if dashboard else "http://127.0.0.1:8265"


def dashboard_token(env: Mapping[str, str]) -> str:
    """Return the token of Ray's own API, from where Ray keeps it."""
    path = env.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return env.get("RAY_AUTH_TOKEN") or Path(path).read_text().strip()
    except OSError:
        return ""


def ray_folder(env: Mapping[str, str], pid: int) -> Path:
    """Return the folder of the Ray cluster that a process has started; of the latest where it has started none."""
    base = env.get("RAY_TMPDIR") or env.get("TMPDIR") or "/tmp"  # noqa: S108 - where Ray puts it
    own = Path(base, "ray").glob(f"session_*_{pid}")
    return next(own, Path(base, "ray", "session_latest").resolve())


def ray_address(folder: Path) -> str:
    """Return the address of the cluster of a folder, for `ray.init` on this machine; `auto` where none is written."""
    ports = [path.read_text().strip() for path in folder.glob("gcs_server_port_*")]
    return f"127.0.0.1:{ports[0]}" if ports else "auto"
