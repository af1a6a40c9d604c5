"""Builds the environment of `serve run` from an environment file and the current variables.

It turns HAProxy off if HAProxy cannot run on this machine. This module does not start processes or
read Serve config files.
"""

import socket
from collections.abc import Callable, Mapping

_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_DIRECT_INGRESS = "RAY_SERVE_ENABLE_DIRECT_INGRESS"


def read_env_file(text: str) -> dict[str, str]:
    """Parse lines of the form NAME=value. Comments and empty lines are skipped.

    Raises:
        ValueError: A line does not have the form NAME=value.
    """
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier():
            raise ValueError(f"line {name!r} is not NAME=value")
    return {name: value for name, _, value in pairs}


def choose_environment(
    settings: Mapping[str, str],
    real: Mapping[str, str],
    problem: Callable[[Mapping[str, str]], str | None],
) -> tuple[dict[str, str], str | None]:
    """Merge the environment file with the current environment, and turn HAProxy off if it cannot run.

    Direct ingress is turned off together with HAProxy. Otherwise the ingress replicas would listen
    on ports of their own, and only the head node would have a proxy.

    Args:
        settings: The variables from the file.
        real: The variables that are already set. They override the variables from the file.
        problem: Returns why HAProxy cannot run in an environment, or None if HAProxy can run.

    Returns:
        The environment for `serve run`, and the reason why HAProxy cannot run. The reason is None if
        HAProxy can run or was not requested.
    """
    env = {**settings, **real}
    reason = None
    if env.get(_HAPROXY) == "1":
        reason = problem(env)
        if reason is None:
            return env, None
        env[_HAPROXY] = env[_DIRECT_INGRESS] = "0"
    return {_DIRECT_INGRESS: "0", **env}, reason


def is_free(port: int, host: str = "") -> bool:
    """Return whether a server can listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
