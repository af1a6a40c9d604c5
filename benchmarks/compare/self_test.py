"""Check that the load generators are not the bottleneck by running them against a trivial server."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping

from benchmarks.compare.contenders import ROOT
from benchmarks.load import HOST, has_wrk, send_with_asyncio, send_with_wrk
from serve_app.cli.process_group import Session
from tests.support.server import free_port

_CLIENTS = (1, 64)
_START_S = 10.0
# Clients that are this many times faster than the fastest server are not a bottleneck.
_MARGIN = 5


def client_rates() -> dict[str, float]:
    """Return the requests per second of each load generator against the trivial server."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.compare.trivial", str(port)]
    session = Session.start(command, os.environ, ROOT / "build" / "bench-trivial.log")
    generators = {"asyncio": send_with_asyncio}
    if has_wrk():
        generators["wrk"] = send_with_wrk
    try:
        _wait_for(port)
        return {
            f"{name}, {clients} clients": send(
                [b'{"input": "a text"}'], port, clients=clients, warm_s=0.3, seconds=1
            ).requests_per_s
            for name, send in generators.items()
            for clients in _CLIENTS
        }
    finally:
        session.stop(lambda: False, grace_s=5)


def verdict(rates: Mapping[str, float], fastest_per_s: float) -> str:
    """Return a line that says whether the clients were fast enough for the fastest server measured."""
    slowest = min(rates.values())
    result = "no bottleneck" if slowest >= _MARGIN * fastest_per_s else "POSSIBLE BOTTLENECK"
    return (
        f"clients: {result}; the slowest reaches {slowest:.0f} requests/s alone, "
        f"the fastest server {fastest_per_s:.0f} requests/s"
    )


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no server is listening on port {port}")
