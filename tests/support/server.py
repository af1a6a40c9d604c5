"""Start a real server with `serve run CONFIG`, as a user would, and stop all its processes."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import requests
import yaml

from serve_app.cli.environment import is_free, read_env_file
from serve_app.cli.process_group import Session, session_members
from serve_app.proxy.environment import haproxy_settings

ROOT = Path(__file__).parents[2]
ProxyMode = Literal["default", "throughput"]
_PORTS = cycle(random.sample(range(21_000, 29_000), 8_000))
PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: the URL of the product's application.
        mode: the proxy mode.
        config: the path of the Serve config file.
        environment: the environment variables of the server's processes and of its callers.
        logs: the folder of Ray Serve's log files.
        session: its processes.
        early: status and content type of the responses before the server was ready.
    """

    url: str
    mode: ProxyMode
    config: Path
    environment: Mapping[str, str]
    logs: Path
    session: Session
    early: Sequence[tuple[int, str]]

    @property
    def plumbing_url(self) -> str:
        """The URL of the plumbing application."""
        return f"{self.url}/plumbing"

    def run_script(self, name: str, *arguments: str) -> str:
        """Run a script of `tests/support/scripts` on the server's cluster and return its output."""
        return self.run(
            [sys.executable, str(ROOT / "tests" / "support" / "scripts" / name), *arguments]
        )

    def run(self, command: Sequence[str], *, timeout_s: float = 110) -> str:
        """Run a command in the server's environment and return its output."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
        return done.stdout

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Deploy a config, as `serve deploy` does."""
        self.config.write_text(yaml.safe_dump(config))
        self.run_script("deploy.py", str(self.config))

    def processes(self, title: str) -> list[int]:
        """Return the ids of the processes whose title starts with `title`.

        Ray appends a process's current activity to its title.
        """
        pids = []
        for pid in session_members(self.session.process.pid):
            with contextlib.suppress(psutil.Error):  # the process has ended since
                if " ".join(psutil.Process(pid).cmdline()).startswith(title):
                    pids.append(pid)
        return pids

    def memory(self) -> dict[int, int]:
        """Return the resident memory of each process in bytes, by process id."""
        sizes = {}
        for pid in session_members(self.session.process.pid):
            with contextlib.suppress(psutil.Error):
                sizes[pid] = psutil.Process(pid).memory_info().rss
        return sizes

    def read_logs(self, names: str = "*.log") -> str:
        """Return the contents of Ray Serve's log files that match the pattern."""
        return "\n".join(path.read_text() for path in sorted(self.logs.glob(names)))


def wait_for(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Wait until the condition holds.

    Args:
        condition: checked every 0.1 seconds.
        timeout_s: seconds until the wait fails with an AssertionError.
        what: a description of the condition for the failure message.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {timeout_s:g} s: {what}"
        time.sleep(0.1)


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def answers(url: str, others: list[tuple[int, str]] | None = None) -> bool:
    """Return whether a GET request gets a 200.

    Any other response is added to `others`, as its status and content type.
    """
    try:
        answer = requests.get(url, timeout=5)
    except requests.RequestException:
        return False
    if answer.status_code != 200 and others is not None:
        others.append((answer.status_code, answer.headers["content-type"]))
    return answer.status_code == 200


@contextmanager
def running_server(
    config: Mapping[str, Any], *, mode: ProxyMode, cache: Path, host: str = "127.0.0.1"
) -> Iterator[Server]:
    """Run a server with `serve run` until the block ends, then stop all its processes.

    Args:
        config: the contents of the Serve config file, without `http_options`.
        mode: the proxy mode.
        cache: the folder for converted models.
        host: the address to listen on, which must include 127.0.0.1.
    """
    folder = Path(tempfile.mkdtemp(prefix="srv", dir="/tmp"))  # Ray's sockets need a short path
    port = free_port()
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump({**config, "http_options": {"host": host, "port": port}}))
    environment = _environment(mode, folder, cache)
    command = [str(Path(sys.executable).with_name("serve")), "run", str(path)]
    session = Session.start(command, environment, folder / "serve_run.log")
    early: list[tuple[int, str]] = []
    server = Server(
        f"http://127.0.0.1:{port}",
        mode,
        path,
        environment,
        folder / "ray/session_latest/logs/serve",
        session,
        early,
    )
    try:
        for application in config["applications"]:
            prefix = application["route_prefix"].rstrip("/")
            _wait_until_ready(f"{server.url}{prefix}/ready", session, early)
        yield server
    finally:
        remaining = session.stop(lambda: False, grace_s=60)
        shutil.rmtree(folder, ignore_errors=True)
    assert remaining == []


def _wait_until_ready(url: str, session: Session, early: list[tuple[int, str]]) -> None:
    deadline = time.monotonic() + 120
    while not answers(url, early):
        has_failed = session.has_ended() or time.monotonic() > deadline
        assert not has_failed, f"{url} is not ready:\n{session.output()[-3000:]}"
        time.sleep(0.2)


def free_port() -> int:
    """Return a free port that this function has not returned before.

    It is below the ephemeral port range. Otherwise one of Ray's processes could be assigned the same port before
    Serve binds it, seconds later.
    """
    return next(port for port in _PORTS if is_free(port, "127.0.0.1"))


def _environment(mode: ProxyMode, folder: Path, cache: Path) -> dict[str, str]:
    """Return the environment variables of a server.

    RAY_* and SERVE_* variables come only from the proxy mode. A separate RAY_TMPDIR isolates the cluster from others.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SERVE_"))}
    flags = read_env_file((ROOT / "throughput.env").read_text())
    if mode == "throughput":
        flags |= haproxy_settings(str(folder))
    else:  # the only variable that the documentation asks for with Ray's default proxy
        flags = {PROXY_CALLBACK: flags[PROXY_CALLBACK]}
    encodings = ROOT.parent / "shared" / "tiktoken"
    if encodings.is_dir():  # use tiktoken's files beside the checkout instead of downloading them
        flags["TIKTOKEN_CACHE_DIR"] = str(encodings)
    return {
        **inherited,
        **flags,
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(folder),
        "XDG_CACHE_HOME": str(cache),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
