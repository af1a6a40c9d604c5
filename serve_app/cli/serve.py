"""The command behind `make serve`: starts the server, reports progress and stops all its processes.

It is a thin wrapper around `serve run`. With `--check`, it only checks a config file. This module
does not import Ray, directly or indirectly, so that it can report a mistake within a second.
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
# Longer than the 30 s that `serve run` waits for Serve's shutdown (ray/serve/_private/client.py).
_GRACE_S = 45.0
_WELCOME = """
Ready. Try it in another terminal:

  curl {url}/v1/embeddings{key} -H 'Content-Type: application/json' -d '{{"input": "test input"}}'

Documentation: {url}/docs
Logs:          {folder}/logs/serve
Redeploy:      RAY_AUTH_MODE=token {python.parent}/serve deploy FILE -a {dashboard}
From Python:   RAY_AUTH_MODE=token RAY_ADDRESS={ray} {python} SCRIPT
Ctrl-C stops everything that this command has started.
"""


class Stop:
    """A signal handler that counts stop requests: Ctrl-C, SIGTERM, or a closed terminal."""

    def __init__(self) -> None:
        self.requests = 0

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Count a signal."""
        self.requests += 1


def follow(session: Session, stop: Stop) -> None:
    """Print the command's new output until a stop is requested.

    Raises:
        StartError: The command exited on its own.
    """
    with session.log.open("rb") as log:
        log.seek(0, os.SEEK_END)
        while not stop.requests:
            sys.stdout.write(log.read().decode(errors="replace"))
            sys.stdout.flush()
            if session.has_ended():
                raise StartError(f"The server exited on its own. See {session.log}.")
            time.sleep(_TICK_S)


def _prepare(config: str, env_file: str) -> tuple[Plan, dict[str, str]]:
    plan = read_config_file(config)
    if os.environ.get("RAY_ADDRESS"):
        print_status(
            "RAY_ADDRESS is set: deploying to that cluster. The cluster's own environment applies; "
            f"{env_file} is not used."
        )
        return plan, dict(os.environ)
    address = plan.address
    if not is_free(address.port, "" if address.host == "localhost" else address.host):
        raise PrepareError(
            f"Port {address.port} is in use, or you have no permission to use it. Stop the process "
            f"that listens on it, or set another `port` under `http_options` in {config}."
        )
    try:
        settings = read_env_file(Path(env_file).read_text())
    except (OSError, ValueError) as error:
        raise PrepareError(f"{env_file}: {error}") from error
    env, reason = choose_environment(
        settings,
        os.environ,
        lambda env: haproxy_problem(env, binary=haproxy_binary, is_free=is_free),
    )
    if reason is not None:
        print_status(f"Using Ray's default proxy, which is slower than HAProxy: {reason}.")
    return plan, proxy_settings(plan.error_format) | env


def _serve(config: str, plan: Plan, env: Mapping[str, str], stop: Stop) -> None:
    address = plan.address
    log = Path("build") / f"serve-{address.port}.log"
    # Without an address, `serve run` would join a cluster that already runs on this machine. That
    # cluster has its own settings.
    cluster = [] if env.get("RAY_ADDRESS") else ["--address", "local"]
    command = [sys.executable, "-m", "ray.serve.scripts", "run", *cluster, config]
    print_status(f"Starting {config}. Ray's output is in {log}")
    session = Session.start(command, env, log)
    try:
        if wait_until_ready(
            session,
            address,
            stopping=lambda: stop.requests > 0,
            details=lambda: serve_details(session.output(), dashboard_token(env)),
            report=Progress(print_status),
        ):
            folder = ray_folder(env, session.process.pid)
            welcome = _WELCOME.format(
                url=address.url,
                key=" -H 'Authorization: Bearer KEY'" if plan.needs_key else "",
                folder=folder,
                python=Path(sys.executable),
                dashboard=dashboard_url(session.output()),
                ray=env.get("RAY_ADDRESS") or ray_address(folder),
            )
            print_status(welcome)
            follow(session, stop)
    finally:
        print_status("Stopping. Press Ctrl-C again to stop immediately")
        requests = stop.requests
        survivors = session.stop(lambda: stop.requests > requests, grace_s=_GRACE_S)
        print_status(f"Still running: {survivors}" if survivors else "Stopped")


def _check(config: str) -> int:
    try:
        read_config_file(config)
    except PrepareError as error:
        print(error, file=sys.stderr)
        return 2
    print_status(
        f"{config}: no errors in `args`, `user_config`, local models and API keys. "
        "Ray Serve's own options were not checked."
    )
    return 0


def main() -> int:
    """Run the command.

    Returns:
        The exit status: 0 if a stop was requested, 1 if the server failed, 2 if the server could not
        be started.
    """
    parser = argparse.ArgumentParser(prog="python -m serve_app.cli.serve")
    parser.add_argument("--config", default="serve_config.yaml", help="the Serve config file")
    parser.add_argument("--env", default="throughput.env", help="a file of environment variables")
    parser.add_argument(
        "--check", action="store_true", help="check the config file without starting the server"
    )
    args = parser.parse_args()
    if args.check:
        return _check(args.config)
    stop = Stop()
    # `serve run` inherits ignored signals: a shell starts background jobs with SIGINT ignored. It does
    # not inherit handlers. Signals that have a handler here therefore work in `serve run`.
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, stop)
    try:
        plan, env = _prepare(args.config, args.env)
        # By default, HAProxy's files are in a folder that all users share. This folder's path is
        # short because the length of a socket path is limited.
        with tempfile.TemporaryDirectory(prefix="serve-", dir="/tmp") as folder:
            _serve(args.config, plan, haproxy_settings(folder) | env, stop)
    except (PrepareError, StartError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, PrepareError) else 1
    return 0


def print_status(text: str) -> None:
    """Print a message to the terminal without buffering."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
