"""Soak test: a long run with mixed traffic, killed processes and rollouts.

Run it with `make soak` or `python -m benchmarks.capacity.soak`. It reports three tables: the responses that each kind
of client got, the failures after each kind of event, and the memory of each kind of process at start and end.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import yaml

from benchmarks.capacity.soak_tables import (
    LOST,
    Costs,
    Tally,
    answers_table,
    costs_table,
    memory_table,
)
from benchmarks.compare.contenders import MODEL, ROOT, Contender, Started, started, stop_in_order
from benchmarks.load import HOST, PATH, request
from benchmarks.workloads import body
from serve_app.cli.process_group import session_members
from serve_app.cli.readiness import dashboard_url

_REPLICAS = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}
SERVER = Contender(
    "soak",
    "this server, two replicas",
    "ours",
    {"threads": 1, "max_queued_tokens": 20_000, "deployment": _REPLICAS},
    throughput=True,
)
_SETTLE_S = 30.0
# The role of each process by the prefix of its command line.
_ROLES = {
    "ray::ServeReplica:embeddings:ingress": "ingress replica",
    "ray::ServeReplica:embeddings": "model replica",
    "ray::ServeController": "controller",
    "ray::HAProxyManager": "HAProxy manager",
    "ray::ProxyActor": "Ray proxy",
    "haproxy": "HAProxy",
    "raylet": "raylet",
    "gcs_server": "gcs_server",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of client.

    Attributes:
        name: the label in the table.
        clients: number of concurrent clients.
        content: the request body.
        pause_s: seconds between a response and the next request.
        expected: the expected status.
    """

    name: str
    clients: int
    content: bytes
    pause_s: float = 0.0
    expected: int = 200


_TEXT = "the quick brown fox jumps over the lazy dog"
_LONG = json.dumps({"input": f"{_TEXT} " * 200, "truncate": True}).encode()
KINDS = (
    Kind("short text", 6, body([_TEXT], model=MODEL["name"]), 0.02),
    Kind("64 texts", 2, body([_TEXT] * 64, model=MODEL["name"]), 0.2),
    Kind("1,000 texts, often over the limit", 2, body([_TEXT] * 1000, model=MODEL["name"]), 5.0),
    Kind("truncated text", 1, _LONG, 0.1),
    Kind("invalid request", 1, b'{"input": ["a", ""]}', 0.2, 400),
)


async def _send_requests(kind: Kind, port: int, tally: Tally, costs: Costs, until: float) -> None:
    while time.monotonic() < until:
        start = time.monotonic()
        try:
            status = await request(kind.content, port)
        except (OSError, EOFError):
            tally.answers[LOST] += 1
            costs.failures[costs.last, LOST] += 1
            await asyncio.sleep(0.1)
        else:
            tally.record(status, time.monotonic() - start, kind.expected)
            if status not in (kind.expected, 429):
                costs.failures[costs.last, str(status)] += 1
        await asyncio.sleep(kind.pause_s)


async def _disconnect_early(port: int, until: float) -> None:
    """Send requests and close each connection before the response."""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(KINDS[1].content)}\r\n\r\n"
    )
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(head.encode() + KINDS[1].content)
            await asyncio.sleep(0.02)
            writer.close()
        await asyncio.sleep(0.5)


def roles(server: Started) -> dict[str, list[psutil.Process]]:
    """Return the server's processes by role."""
    by_role: dict[str, list[psutil.Process]] = defaultdict(list)
    for pid in session_members(server.session.process.pid):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            command = process.cmdline()
            name = command[0] if command[0].startswith("ray::") else Path(command[0]).name
            role = next((role for begin, role in _ROLES.items() if name.startswith(begin)), "")
            if role:
                by_role[role].append(process)
    return by_role


def memory(server: Started) -> dict[str, int]:
    """Return the resident memory, in bytes, of the largest process of each role."""
    sizes = {}
    for role, processes in roles(server).items():
        with contextlib.suppress(psutil.Error):
            sizes[role] = max(process.memory_info().rss for process in processes)
    return sizes


def kill(role: str) -> Callable[[Started], None]:
    """Return an event that kills one process of a role."""

    def event(server: Started) -> None:
        victims = roles(server)[role]
        if victims:
            os.kill(victims[0].pid, signal.SIGKILL)

    event.__name__ = f"{role} killed"
    return event


def rollout(server: Started) -> None:
    """Deploy different limits, which replaces every replica."""
    config = yaml.safe_load(server.config.read_text())
    model = config["applications"][0]["args"]["models"][0]
    model["max_input_tokens"] = 256 if model.get("max_input_tokens") == 255 else 255
    server.config.write_text(yaml.safe_dump(config))
    serve = Path(sys.executable).with_name("serve")
    command = [
        str(serve),
        "deploy",
        str(server.config),
        "-a",
        dashboard_url(server.session.output()),
    ]
    environment = {**server.environment, "RAY_AUTH_MODE": "token"}
    subprocess.run(command, env=environment, check=True, capture_output=True)


EVENTS = (
    kill("model replica"),
    rollout,
    kill("ingress replica"),
    kill("controller"),
    kill("HAProxy"),
)


async def _trigger_events(server: Started, costs: Costs, until: float, every_s: float) -> None:
    """Trigger the events in a cycle."""
    events = itertools.cycle(EVENTS)
    while time.monotonic() < until - 1.5 * every_s:  # leaves time to recover before the end
        await asyncio.sleep(every_s)
        event = next(events)
        costs.begin(event.__name__)
        print(f"{datetime.now(UTC):%H:%M:%S}  {event.__name__}", flush=True)
        await asyncio.to_thread(event, server)


async def soak(
    server: Started, *, seconds: float, every_s: float
) -> tuple[dict[str, Tally], Costs]:
    """Run all clients and events for `seconds`, with `every_s` seconds between events."""
    until = time.monotonic() + seconds
    tallies, costs = {kind.name: Tally() for kind in KINDS}, Costs()
    await asyncio.gather(
        _trigger_events(server, costs, until, every_s),
        _disconnect_early(server.port, until),
        *(
            _send_requests(kind, server.port, tallies[kind.name], costs, until)
            for kind in KINDS
            for _ in range(kind.clients)
        ),
    )
    return tallies, costs


def main() -> None:
    """Run the soak test and write the tables to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity.soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every-s", type=float, default=60, help="seconds between two events")
    arguments = parser.parse_args()
    stop_in_order()
    with started(SERVER) as server:
        asyncio.run(soak(server, seconds=_SETTLE_S, every_s=_SETTLE_S))
        before = memory(server)
        tallies, costs = asyncio.run(
            soak(server, seconds=60 * arguments.minutes, every_s=arguments.every_s)
        )
        after = memory(server)
    head = f"{arguments.minutes:g} minutes through HAProxy, two model replicas."
    tables = (answers_table(tallies), costs_table(costs), memory_table(before, after))
    text = "\n\n".join([head, *tables, ""])
    path = ROOT / "benchmarks" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-soak.md"
    path.write_text(text)
    print(f"\n{text}\n{path}")


if __name__ == "__main__":
    main()
