"""The clients: send a workload's requests to a server for some seconds, and count what comes back.

wrk where it is installed and requests are short; else asyncio, which counts parts of requests. Each connection has one
request under way at any time. Knows nothing of what it talks to.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks.workloads import Requests

HOST = "127.0.0.1"
PATH = "/v1/embeddings"
# The longest that is waited for an answer: a plain server may need a minute for 2,048 texts.
PATIENCE_S = 180.0


class LoadError(Exception):
    """A server gave something else than an answer, so that its rate means nothing."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a load brought: requests a second, the time of one, and how many were not answered with 200."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Exchange:
    begun: float
    ended: float
    status: int

    def share(self, begin: float, end: float) -> float:
        """Return how much of it lies between two times, as a part of the whole."""
        overlap = min(self.ended, end) - max(self.begun, begin)
        return max(overlap, 0.0) / (self.ended - self.begun)


def has_wrk() -> bool:
    """Whether the load generator that is written in C is installed."""
    return shutil.which("wrk") is not None


def send(requests: Requests, port: int, *, warm_s: float, seconds: float) -> Rate:
    """Load a server: some seconds to come up to speed, then those that are counted.

    Raises:
        LoadError: not every request was answered with 200, or none was in time.
    """
    workload = requests.workload
    generator = send_with_asyncio if workload.is_slow or not has_wrk() else send_with_wrk
    try:
        rate = generator(
            requests.bodies,
            port,
            clients=workload.clients,
            warm_s=warm_s,
            seconds=seconds,
            background=[requests.background] * workload.background_clients,
        )
    except (OSError, EOFError, subprocess.SubprocessError) as error:
        raise LoadError(f"{workload.name}: {type(error).__name__}") from error
    if rate.failed or not rate.requests_per_s:
        raise LoadError(f"{workload.name}: {rate.failed} requests failed")
    return rate


def send_with_wrk(
    bodies: Sequence[bytes],
    port: int,
    *,
    clients: int,
    warm_s: float,
    seconds: float,
    background: Sequence[Sequence[bytes]] = (),
) -> Rate:
    """Load a server with wrk; one thread of it serves all connections."""
    assert not any(background), "wrk's clients are all alike"
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(b"\n".join(bodies))
        file.flush()
        command = ["wrk", "--threads", "1", "--connections", str(clients)]
        command += ["--duration", f"{int(warm_s + seconds) + 1}s", "--timeout", f"{PATIENCE_S:.0f}"]
        command += ["--script", f"{__file__.removesuffix('.py')}.lua", f"http://{HOST}:{port}"]
        command += ["--", file.name, PATH, str(warm_s), str(warm_s + seconds)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds + PATIENCE_S
        )
    counted = json.loads(done.stdout.strip().splitlines()[-1])
    return Rate(requests_per_s=counted.pop("answered") / seconds, **counted)


def send_with_asyncio(
    bodies: Sequence[bytes],
    port: int,
    *,
    clients: int,
    warm_s: float,
    seconds: float,
    background: Sequence[Sequence[bytes]] = (),
) -> Rate:
    """Load a server from this process; a request that lies partly in the counted seconds counts in part.

    With a background, one more client for each of its items sends that, and is not counted.
    """
    begin = time.monotonic() + warm_s
    end = begin + seconds
    exchanges = asyncio.run(_send(bodies, background, port, clients=clients, until=end))
    taken_ms = [1000 * (e.ended - e.begun) for e in exchanges]
    return Rate(
        requests_per_s=sum(e.share(begin, end) for e in exchanges) / seconds,
        p50_ms=float(np.percentile(taken_ms, 50)),
        p99_ms=float(np.percentile(taken_ms, 99)),
        max_ms=max(taken_ms),
        failed=sum(e.status != 200 for e in exchanges),
    )


async def _send(
    bodies: Sequence[bytes],
    background: Sequence[Sequence[bytes]],
    port: int,
    *,
    clients: int,
    until: float,
) -> list[_Exchange]:
    messages = cycle([_message(body) for body in bodies])
    runs = [_client(messages, port, until=until) for _ in range(clients)]
    runs += [
        _client(cycle([_message(body) for body in contents]), port, until=until)
        for contents in filter(None, background)
    ]
    async with asyncio.timeout(until - time.monotonic() + PATIENCE_S):
        done = await asyncio.gather(*runs)
    return [exchange for run in done[:clients] for exchange in run]


async def _client(messages: Iterator[bytes], port: int, *, until: float) -> list[_Exchange]:
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
    exchanges = []
    try:
        while (begun := time.monotonic()) < until:
            writer.write(next(messages))
            status = await _read_answer(reader)
            exchanges.append(_Exchange(begun, time.monotonic(), status))
    finally:
        writer.close()
    return exchanges


async def request(body: bytes, port: int) -> int:
    """Send one request over a connection of its own and return the status of the answer."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
    try:
        writer.write(_message(body))
        return await _read_answer(reader)
    finally:
        writer.close()


def _message(body: bytes) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end and return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    if length:
        await reader.readexactly(int(length))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    return int(head.split(None, 2)[1])
