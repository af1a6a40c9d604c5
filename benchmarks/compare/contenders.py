"""The contenders of a comparison: how each server is started, with which model and settings.

Each server runs in its own process session and is stopped together with all processes it started. This module does
not depend on workloads or results.
"""

import contextlib
import http.client
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from benchmarks.load import HOST, PATH
from benchmarks.workloads import SHORT, body
from serve_app.checkpoints.source import resolve
from serve_app.cli.environment import read_env_file
from serve_app.cli.process_group import Session
from serve_app.proxy.environment import haproxy_settings
from tests.support.server import free_port

ROOT = Path(__file__).parents[2]
INFINITY = ROOT / "benchmarks" / ".venv-infinity" / "bin" / "infinity_emb"
MODEL: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0][
    "args"
]["models"][0]
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_START_S = 120.0
_CONFIG = "serve_config.yaml"
_TICK_S = 0.1
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Enough time for a Ray cluster to shut down. Processes that remain after it are killed one by one.
_GRACE_S = 30.0
# Set to free ports so that the benchmark does not disturb another server on this machine.
_HAPROXY_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)


class StartFailedError(Exception):
    """A server did not start. The message ends with the server's output."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to compute embeddings.

    Attributes:
        name: the identifier in result files and for --only.
        title: the label in tables and charts.
        kind: `ours` for this server, `sleeping` for this server with a model that sleeps, `plain`, `infinity`,
            or `ceiling` for the in-process encoder, which is not a server.
        model: model settings that override those of `serve_config.yaml`. The ceiling is loaded with them too.
        throughput: whether to apply the settings of `throughput.env`.
        deployment: Ray Serve options for the plain application's deployment or for the sleeping model. For the
            latter they replace `replicas`.
        replicas: number of replicas of the sleeping model.
        workloads: names of the workloads to run; empty means all.
        root: the checkout whose server, settings and virtual environment are used.
    """

    name: str
    title: str
    kind: str
    model: Mapping[str, Any] = field(default_factory=dict)
    throughput: bool = False
    deployment: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1
    workloads: tuple[str, ...] = ()
    root: Path = ROOT

    @property
    def python(self) -> Path:
        """The Python interpreter of the checkout's virtual environment."""
        if self.root == ROOT:
            return Path(sys.executable)
        return self.root / ".venv" / "bin" / "python"

    @property
    def dtype(self) -> str:
        """The dtype of the computation."""
        return str(self.model.get("dtype", "float32"))


# The first settings an author would tune: concurrency for all clients, and all cores. Ray derives OMP_NUM_THREADS
# from num_cpus.
_TUNED = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": THREADS}}
_BFLOAT16 = {"dtype": "bfloat16"}
CONTENDERS: tuple[Contender, ...] = (
    Contender("default", "this server, Ray's default proxy", "ours"),
    Contender("throughput", "this server", "ours", throughput=True),
    Contender("throughput-bf16", "this server, bfloat16", "ours", _BFLOAT16, throughput=True),
    Contender(
        "one-priority",
        "this server, everything interactive",
        "ours",
        {"interactive_tokens": 1_000_000},
        throughput=True,
        workloads=("priorities",),
    ),
    Contender("infinity", "infinity, torch", "infinity"),
    Contender("plain", "plain Ray Serve app, its defaults", "plain"),
    Contender("plain-tuned", "plain Ray Serve app, tuned", "plain", deployment=_TUNED),
    Contender("ceiling", "in-process encoder", "ceiling"),
    Contender("ceiling-bf16", "in-process encoder, bfloat16", "ceiling", _BFLOAT16),
    *(
        Contender(
            f"sleep-{count}",
            f"this server, sleeping replicas: {count}",
            "sleeping",
            throughput=True,
            replicas=count,
        )
        for count in (1, 2, 4)
    ),
)


def base(root: Path) -> Contender:
    """Return another checkout of this project as a contender. It needs a previous `make install`."""
    title = f"the server of {root.name}"
    return Contender("base", title, "ours", throughput=True, root=root.resolve())


def model_directory() -> Path:
    """Return the directory of the model's files."""
    return resolve(MODEL["source"], weights=True)


def missing(contender: Contender) -> str | None:
    """Return the reason why a contender cannot be started, or None if it can."""
    if contender.kind == "infinity" and not INFINITY.exists():
        return "not installed; see the end of build/infinity.log"
    if not contender.python.exists():
        return f"not installed; run `make install` in {contender.root}"
    return None


@dataclass(frozen=True, slots=True)
class Started:
    """A running server.

    Attributes:
        port: its HTTP port.
        session: its processes.
        config: its Serve config file; unused if the server does not run on Ray Serve.
        environment: the environment variables of its processes.
    """

    port: int
    session: Session
    config: Path
    environment: Mapping[str, str]


@contextmanager
def running(contender: Contender) -> Iterator[int]:
    """Run a server until the block ends. Yields its port once it serves embeddings.

    Raises:
        StartFailedError: The server exited or did not become ready in time, or could not be stopped.
    """
    with started(contender) as server:
        yield server.port


@contextmanager
def started(contender: Contender) -> Iterator[Started]:
    """Run a server like `running`, but yield all its details."""
    folder = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp"))  # Ray's sockets need a short path
    port = free_port()
    command, environment = _command(contender, port, folder)
    session = Session.start(command, environment, ROOT / "build" / f"bench-{contender.name}.log")
    try:
        _wait_until_ready(session, port, contender)
        yield Started(port, session, folder / _CONFIG, environment)
    finally:
        with _defer_signals() as received:
            remaining = session.stop(lambda: bool(received), grace_s=_GRACE_S)
            shutil.rmtree(folder, ignore_errors=True)
    if remaining:
        raise StartFailedError(
            f"{contender.name}: these processes could not be stopped: {remaining}"
        )


def _command(contender: Contender, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    if contender.kind == "infinity":
        return _infinity(port)
    environment = {
        **_own_environment(),
        "PYTHONPATH": f"{contender.root}:{ROOT}",  # ROOT holds the benchmark's own applications
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENCH_MODEL": str(model_directory()),
    }
    if contender.throughput:
        environment |= read_env_file((contender.root / "throughput.env").read_text())
        environment |= haproxy_settings(str(folder))
        binary = contender.python.with_name("embeddings-haproxy")
        if binary.exists():
            environment["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(binary)
        environment |= {name: str(free_port()) for name in _HAPROXY_PORTS}
    path = folder / _CONFIG
    path.write_text(yaml.safe_dump(_config(contender, port)))
    serve = [str(contender.python), "-m", "ray.serve.scripts"]
    return [*serve, "run", "--address", "local", str(path)], environment


def _config(contender: Contender, port: int) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((contender.root / "serve_config.yaml").read_text())
    config["http_options"] = {"host": HOST, "port": port}
    application = config["applications"][0]
    if contender.kind == "ours":
        application["args"]["models"][0] |= contender.model
    elif contender.kind == "sleeping":
        application["import_path"] = "tests.support.plumbing:build_sleeping"
        replicas = contender.deployment or {"num_replicas": contender.replicas}
        options = {"ray_actor_options": {"num_cpus": 0.1}, **replicas}
        model = {"max_batch_tokens": SHORT, "deployment": options, **contender.model}
        application["args"]["models"][0] |= model
    else:
        plain = {
            "name": "plain",
            "route_prefix": "/",
            "import_path": "benchmarks.compare.plain_app:app",
        }
        deployment = {"name": "Embeddings", **contender.deployment}
        config["applications"] = [{**plain, "deployments": [deployment]}]
    return config


def _infinity(port: int) -> tuple[list[str], dict[str, str]]:
    """Return infinity's command and environment.

    BetterTransformer is off because infinity's own dependencies do not install it.
    """
    command = [str(INFINITY), "v2", "--model-id", str(model_directory())]
    command += ["--served-model-name", MODEL["name"], "--engine", "torch", "--device", "cpu"]
    command += ["--dtype", "float32", "--no-bettertransformer"]
    command += ["--host", HOST, "--port", str(port), "--url-prefix", "/v1"]
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return command, _own_environment() | quiet


def _own_environment() -> dict[str, str]:
    """Return this process's environment without variables that would affect the measurement."""
    foreign = ("RAY_", "SERVE_", "OMP_", "MKL_", "INFINITY_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _wait_until_ready(session: Session, port: int, contender: Contender) -> None:
    deadline = time.monotonic() + _START_S
    while not (_embeds(port) and _has_all_replicas(port, contender)):
        if session.has_ended() or time.monotonic() > deadline:
            raise StartFailedError(f"{contender.name} did not start:\n{session.output()[-2000:]}")
        time.sleep(_TICK_S)


def _embeds(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return post(port, body(["a text"], model=MODEL["name"]), timeout_s=10).status == 200
    return False


def _has_all_replicas(port: int, contender: Contender) -> bool:
    """Return whether all replicas have started. A starting replica would compete for the cores."""
    if contender.replicas == 1:
        return True
    scrape = get(port, "/metrics", timeout_s=10).content
    return scrape.count(b"\nembeddings_replica_memory_bytes{") == contender.replicas


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    content: bytes


def post(port: int, content: bytes, *, timeout_s: float) -> Answer:
    """POST a body to the embeddings route."""
    return _exchange(port, "POST", PATH, content, timeout_s)


def get(port: int, path: str, *, timeout_s: float) -> Answer:
    """GET a path."""
    return _exchange(port, "GET", path, None, timeout_s)


def _exchange(port: int, method: str, path: str, content: bytes | None, timeout_s: float) -> Answer:
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def stop_in_order() -> None:
    """Handle stop signals by shutting down all servers, even if the shell makes this process ignore Ctrl-C."""
    for number in _STOPS:
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _defer_signals() -> Iterator[list[int]]:
    """Defer stop signals until the block ends. Yields a list that collects the signals received."""
    received: list[int] = []
    previous = {
        one: signal.signal(one, lambda number, _: received.append(number)) for one in _STOPS
    }
    try:
        yield received
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
    if received:
        raise KeyboardInterrupt
