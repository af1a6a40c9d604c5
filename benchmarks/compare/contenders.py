"""What is compared: how each server is started on this machine, and which model and settings it has.

Each runs in a session of its own and is ended with all that it started. Knows nothing of loads or results.
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
# Long enough for a cluster to end in order; what is left then is ended one by one.
_GRACE_S = 30.0
# Each is free when it is asked for, so that a server that somebody else runs here is left alone.
_HAPROXY_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)


class StartFailedError(Exception):
    """A server did not come up; the message ends with what it said."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to get vectors.

    Attributes:
        name: what it is called in tables and files, and what ONLY takes.
        title: what a reader of the table reads.
        kind: `ours`, `plain`, `infinity`, `sleeping` for ours around a model that sleeps, or `ceiling` for the encoder
            in process, which is not a server.
        model: our settings of the model beside those of `serve_config.yaml`; also what the ceiling is loaded with.
        throughput: the settings of `throughput.env` are on.
        deployment: Ray Serve's options of the plain application's deployment, instead of its defaults; of the model
            that sleeps, instead of a number of replicas.
        replicas: of the model that sleeps.
        workloads: the only ones that it is for; none are all.
        root: the checkout whose server, settings and installation are used.
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
        """The interpreter of its installation."""
        if self.root == ROOT:
            return Path(sys.executable)
        return self.root / ".venv" / "bin" / "python"

    @property
    def dtype(self) -> str:
        """The type it computes in."""
        return str(self.model.get("dtype", "float32"))


# What its writer would turn next: as many requests as there are clients, all cores, and with them OMP_NUM_THREADS.
_TUNED = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": THREADS}}
_BFLOAT16 = {"dtype": "bfloat16"}
CONTENDERS: tuple[Contender, ...] = (
    Contender("default", "this server, Ray's default proxy", "ours"),
    Contender("throughput", "this server", "ours", throughput=True),
    Contender("throughput-bf16", "this server, bfloat16", "ours", _BFLOAT16, throughput=True),
    Contender(
        "one-lane",
        "this server, everything interactive",
        "ours",
        {"interactive_tokens": 1_000_000},
        throughput=True,
        workloads=("lanes",),
    ),
    Contender("infinity", "infinity, torch", "infinity"),
    Contender("plain", "plain Ray Serve app, its defaults", "plain"),
    Contender("plain-tuned", "plain Ray Serve app, tuned", "plain", deployment=_TUNED),
    Contender("ceiling", "the encoder in process", "ceiling"),
    Contender("ceiling-bf16", "the encoder in process, bfloat16", "ceiling", _BFLOAT16),
    *(
        Contender(
            f"sleep-{count}",
            f"this server, replicas that sleep: {count}",
            "sleeping",
            throughput=True,
            replicas=count,
        )
        for count in (1, 2, 4)
    ),
)


def base(root: Path) -> Contender:
    """Return another checkout of this project, in which `make install` was run, as a contender."""
    title = f"the server of {root.name}"
    return Contender("base", title, "ours", throughput=True, root=root.resolve())


def model_directory() -> Path:
    """Return where the files of the model lie."""
    return resolve(MODEL["source"], weights=True)


def missing(contender: Contender) -> str | None:
    """Tell why a contender cannot be started here, or None."""
    if contender.kind == "infinity" and not INFINITY.exists():
        return "it is not installed: see the last lines of build/infinity.log"
    if not contender.python.exists():
        return f"it is not installed: run `make install` in {contender.root}"
    return None


@dataclass(frozen=True, slots=True)
class Started:
    """A server that runs.

    Attributes:
        port: where it answers.
        session: its processes.
        config: the Serve config file that it runs, if it is on Ray Serve.
        environment: what its processes have.
    """

    port: int
    session: Session
    config: Path
    environment: Mapping[str, str]


@contextmanager
def running(contender: Contender) -> Iterator[int]:
    """Run a server until the block ends; gives its port once it embeds.

    Raises:
        StartFailedError: it ended, or did not embed in time.
    """
    with started(contender) as server:
        yield server.port


@contextmanager
def started(contender: Contender) -> Iterator[Started]:
    """Do the same, for those who need more of it than its port."""
    folder = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp"))  # Ray's sockets need a short path
    port = free_port()
    command, environment = _command(contender, port, folder)
    session = Session.start(command, environment, ROOT / "build" / f"bench-{contender.name}.log")
    try:
        _wait_until_it_embeds(session, port, contender)
        yield Started(port, session, folder / _CONFIG, environment)
    finally:
        with _putting_off_signals() as asked:
            left = session.stop(lambda: bool(asked), grace_s=_GRACE_S)
            shutil.rmtree(folder, ignore_errors=True)
    if left:
        raise StartFailedError(f"{contender.name}: processes that cannot be ended: {left}")


def _command(contender: Contender, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    if contender.kind == "infinity":
        return _infinity(port)
    environment = {
        **_own_environment(),
        "PYTHONPATH": f"{contender.root}:{ROOT}",  # the benchmarks' own applications are this checkout's
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENCH_MODEL": str(model_directory()),
    }
    if contender.throughput:
        environment |= read_env_file((contender.root / "throughput.env").read_text())
        environment |= haproxy_settings(str(folder))
        binary = contender.python.with_name("embeddings-haproxy")
        environment |= {"RAY_SERVE_HAPROXY_BINARY_PATH": str(binary)} if binary.exists() else {}
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
    """Infinity as it installs; without BetterTransformer, which its own dependencies do not bring."""
    command = [str(INFINITY), "v2", "--model-id", str(model_directory())]
    command += ["--served-model-name", MODEL["name"], "--engine", "torch", "--device", "cpu"]
    command += ["--dtype", "float32", "--no-bettertransformer"]
    command += ["--host", HOST, "--port", str(port), "--url-prefix", "/v1"]
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return command, _own_environment() | quiet


def _own_environment() -> dict[str, str]:
    """Return this process's environment without settings that would change what is measured."""
    foreign = ("RAY_", "SERVE_", "OMP_", "MKL_", "INFINITY_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _wait_until_it_embeds(session: Session, port: int, contender: Contender) -> None:
    deadline = time.monotonic() + _START_S
    while not (_embeds(port) and _has_all_replicas(port, contender)):
        if session.has_ended() or time.monotonic() > deadline:
            raise StartFailedError(f"{contender.name} did not come up:\n{session.output()[-2000:]}")
        time.sleep(_TICK_S)


def _embeds(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return post(port, body(["a text"], model=MODEL["name"]), timeout_s=10).status == 200
    return False


def _has_all_replicas(port: int, contender: Contender) -> bool:
    """Whether none is still starting, and using the cores for it; only asked where there are several."""
    if contender.replicas == 1:
        return True
    scrape = get(port, "/metrics", timeout_s=10).content
    return scrape.count(b"\nembeddings_replica_memory_bytes{") == contender.replicas


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    content: bytes


def post(port: int, content: bytes, *, timeout_s: float) -> Answer:
    """Send one request and return the answer."""
    return _exchange(port, "POST", PATH, content, timeout_s)


def get(port: int, path: str, *, timeout_s: float) -> Answer:
    """Get a path and return the answer."""
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
    """Have a request to stop this process end what it has started, also where the shell has Ctrl-C ignored."""
    for request in _STOPS:
        signal.signal(request, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _putting_off_signals() -> Iterator[list[int]]:
    """Finish ending processes before a request to stop has its effect; gives those that came meanwhile."""
    asked: list[int] = []
    former = {one: signal.signal(one, lambda number, _: asked.append(number)) for one in _STOPS}
    try:
        yield asked
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
    if asked:
        raise KeyboardInterrupt
