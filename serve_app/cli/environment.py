"""The environment of `serve run`: a file of settings, the variables that win over it, and whether HAProxy can run here.

Decides, and looks at ports and files to decide. Starts nothing that stays, and knows nothing of Serve's configs.
"""

import socket
from collections.abc import Callable, Mapping

_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_DIRECT_INGRESS = "RAY_SERVE_ENABLE_DIRECT_INGRESS"


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


def is_free(port: int, host: str = "") -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
