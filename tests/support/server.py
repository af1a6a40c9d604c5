"""Starts a real server as a user would, `serve run CONFIG`, and stops all of it again."""

import contextlib
import os
import random
import shutil
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
import requests
import yaml

from serve_app.cli.environment import is_free, read_env_file
from serve_app.cli.process_group import Session, session_members
from serve_app.proxy.environment import haproxy_settings

ROOT = Path(__file__).parents[2]
ProxyMode = Literal["default", "throughput"]
_PORTS = cycle(random.sample(range(21_000, 29_000), 8_000))
EDGE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: where the product's application answers.
        mode: the proxy mode it runs in.
        config: the Serve config file that it runs.
        environment: what its processes and its callers have in their environment.
        logs: the folder of Ray Serve's log files.
        session: its processes.
        early: what it answered before it was ready: status and content type.
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
        """Where the application of plumbing.py answers."""
        return f"{self.url}/plumbing"

    def run_script(self, name: str, *arguments: str) -> str:
        """Run a script of this folder on the server's cluster and return what it prints."""
        return self.run(
            [sys.executable, str(ROOT / "tests" / "support" / "scripts" / name), *arguments]
        )

    def run(self, command: Sequence[str], *, timeout_s: float = 110) -> str:
        """Run a command with the environment of the server's callers and return what it prints."""
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
        """Return the ids of the processes to which Ray has given this title; it adds what they are at."""
        found = []
        for pid in session_members(self.session.process.pid):
            with contextlib.suppress(psutil.Error):  # it has ended since
                if " ".join(psutil.Process(pid).cmdline()).startswith(title):
                    found.append(pid)
        return found

    def memory(self) -> dict[int, int]:
        """Return the resident bytes of each of its processes, by id."""
        found = {}
        for pid in session_members(self.session.process.pid):
            with contextlib.suppress(psutil.Error):
                found[pid] = psutil.Process(pid).memory_info().rss
        return found

    def read_logs(self, names: str = "*.log") -> str:
        """Return what Ray Serve's processes have logged."""
        return "\n".join(path.read_text() for path in sorted(self.logs.glob(names)))


def wait_for(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Return once the condition holds; fail the test if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.1)


def answers(url: str, others: list[tuple[int, str]] | None = None) -> bool:
    """Return whether a GET gives 200; status and content type of another answer are added to the others."""
    try:
        answer = requests.get(url, timeout=5)
    except requests.RequestException:
        return False
    if answer.status_code != 200 and others is not None:
        others.append((answer.status_code, answer.headers["content-type"]))
    return answer.status_code == 200


@contextmanager
def running_server(config: Mapping[str, Any], *, mode: ProxyMode, cache: Path) -> Iterator[Server]:
    """Run `serve run` on a configuration until the block ends; all its processes end with it.

    Args:
        config: what stands in the Serve config file, without `http_options`.
        mode: the proxy mode.
        cache: where converted models are kept.
    """
    folder = Path(tempfile.mkdtemp(prefix="srv", dir="/tmp"))  # Ray's sockets need a short path
    port = free_port()
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump({**config, "http_options": {"host": "127.0.0.1", "port": port}}))
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
        left = session.stop(lambda: False, grace_s=60)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def _wait_until_ready(url: str, session: Session, early: list[tuple[int, str]]) -> None:
    deadline = time.monotonic() + 120
    while not answers(url, early):
        problem = session.has_ended() or time.monotonic() > deadline
        assert not problem, f"{url} is not there:\n{session.output()[-3000:]}"
        time.sleep(0.2)


def free_port() -> int:
    """Return a port that nobody listens on and that was not given before.

    Below those that the system deals out by itself: one of these may be gone to some process of Ray's before Serve
    binds it, seconds later.
    """
    return next(port for port in _PORTS if is_free(port, "127.0.0.1"))


def _environment(mode: ProxyMode, folder: Path, cache: Path) -> dict[str, str]:
    """Return the environment of a user: the mode's and nothing else; a folder of its own keeps clusters apart."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SERVE_"))}
    flags = read_env_file((ROOT / "throughput.env").read_text())
    if mode == "throughput":
        flags |= haproxy_settings(str(folder))
    else:  # the one line that the README asks for with Ray's own proxy
        flags = {EDGE: flags[EDGE]}
    encodings = ROOT.parent / "shared" / "tiktoken"
    if encodings.is_dir():  # where tiktoken's files lie beside the checkout, nothing is fetched
        flags["TIKTOKEN_CACHE_DIR"] = str(encodings)
    return {
        **inherited,
        **flags,
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(folder),
        "XDG_CACHE_HOME": str(cache),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
