"""`make serve`: start the server on this machine, say how it is coming along, and in the end stop all of it.

With `--check` it only says whether a config file is right. A thin shell around `serve run`. Imports neither Ray nor
anything that does: it has to check and to answer within a second, long before those are loaded.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from serve_app.cli.check import Plan, PrepareError, read_config_file
from serve_app.cli.environment import choose_environment, is_free, read_env_file
from serve_app.cli.process_group import Session
from serve_app.cli.readiness import (
    Progress,
    StartError,
    dashboard_token,
    dashboard_url,
    ray_address,
    ray_folder,
    serve_details,
    wait_until_ready,
)
from serve_app.proxy.environment import (
    haproxy_binary,
    haproxy_problem,
    haproxy_settings,
    proxy_settings,
)

_TICK_S = 0.25
# Longer than `serve run` itself waits for Serve's shutdown: 30 s (ray/serve/_private/client.py).
_GRACE_S = 45.0
_WELCOME = """
Ready. In another terminal:

  curl {url}/v1/embeddings{key} -H 'Content-Type: application/json' -d '{{"input": "test input"}}'

Documentation: {url}/docs
Logs:          {folder}/logs/serve
New settings:  RAY_AUTH_MODE=token {python.parent}/serve deploy FILE -a {dashboard}
From Python:   RAY_AUTH_MODE=token RAY_ADDRESS={ray} {python} SCRIPT
Ctrl-C stops everything that was started here.
"""


class Stop:
    """Counts the requests to stop: Ctrl-C, a termination, a terminal that was closed."""

    def __init__(self) -> None:
        self.requests = 0

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Note one request; a signal handler."""
        self.requests += 1


def follow(session: Session, stop: Stop) -> None:
    """Show what the command writes from now on, until a request to stop.

    Raises:
        StartError: it ended by itself.
    """
    with session.log.open("rb") as log:
        log.seek(0, os.SEEK_END)
        while not stop.requests:
            sys.stdout.write(log.read().decode(errors="replace"))
            sys.stdout.flush()
            if session.has_ended():
                raise StartError("The server ended by itself.")
            time.sleep(_TICK_S)


def _prepare(config: str, env_file: str) -> tuple[Plan, dict[str, str]]:
    plan = read_config_file(config)
    if os.environ.get("RAY_ADDRESS"):
        print_status(
            f"RAY_ADDRESS is set: going to that cluster, whose own settings apply, not {env_file}"
        )
        return plan, dict(os.environ)
    address = plan.address
    if not is_free(address.port, "" if address.host == "localhost" else address.host):
        raise PrepareError(
            f"Port {address.port} is taken, or not allowed to you. Stop what listens there, or set "
            f"another `port` under `http_options` of {config}."
        )
    try:
        settings = read_env_file(Path(env_file).read_text())
    except (OSError, ValueError) as error:
        raise PrepareError(f"{env_file}: {error}") from error
    env, why = choose_environment(
        settings,
        os.environ,
        lambda env: haproxy_problem(env, binary=haproxy_binary, is_free=is_free),
    )
    if why is not None:
        print_status(f"Through Ray's own proxy, which is slower than HAProxy: {why}.")
    return plan, proxy_settings(plan.error_format) | env


def _serve(config: str, plan: Plan, env: Mapping[str, str], stop: Stop) -> None:
    address = plan.address
    log = Path("build") / f"serve-{address.port}.log"
    # Without an address Ray would join a cluster that runs on this machine, which has settings of its own.
    where = [] if env.get("RAY_ADDRESS") else ["--address", "local"]
    command = [sys.executable, "-m", "ray.serve.scripts", "run", *where, config]
    print_status(f"Starting {config}; what Ray says of it goes to {log}")
    session = Session.start(command, env, log)
    try:
        if wait_until_ready(
            session,
            address,
            stopping=lambda: stop.requests > 0,
            details=lambda: serve_details(session.output(), dashboard_token(env)),
            say=Progress(print_status),
        ):
            folder = ray_folder(env, session.process.pid)
            text = _WELCOME.format(
                url=address.url,
                key=" -H 'Authorization: Bearer KEY'" if plan.needs_key else "",
                folder=folder,
                python=Path(sys.executable),
                dashboard=dashboard_url(session.output()),
                ray=env.get("RAY_ADDRESS") or ray_address(folder),
            )
            print_status(text)
            follow(session, stop)
    finally:
        print_status("Stopping; another Ctrl-C does it at once")
        asked = stop.requests
        left = session.stop(lambda: stop.requests > asked, grace_s=_GRACE_S)
        print_status(f"Still running: {left}" if left else "Stopped")


def _check(config: str) -> int:
    try:
        read_config_file(config)
    except PrepareError as error:
        print(error, file=sys.stderr)
        return 2
    print_status(
        f"{config}: its `args` and `user_config`s are right; models and keys are where it says."
    )
    return 0


def main() -> int:
    """Run the command: 0 after a request to stop, 1 if the server failed, 2 if it could not be started."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.cli.serve")
    parser.add_argument("--config", default="serve_config.yaml", help="a Serve config file")
    parser.add_argument("--env", default="throughput.env", help="a file of environment variables")
    parser.add_argument("--check", action="store_true", help="check the config file, start nothing")
    args = parser.parse_args()
    if args.check:
        return _check(args.config)
    stop = Stop()
    # Handlers, because a signal that is ignored here, as in a background chunk, would be ignored in `serve run` too.
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(request, stop)
    try:
        plan, env = _prepare(args.config, args.env)
        # Of our own, because the default is one that all users share; short, because a socket's path has to be.
        with tempfile.TemporaryDirectory(prefix="serve-", dir="/tmp") as folder:
            _serve(args.config, plan, haproxy_settings(folder) | env, stop)
    except (PrepareError, StartError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, PrepareError) else 1
    return 0


def print_status(text: str) -> None:
    """Print a line for the person at the terminal, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
