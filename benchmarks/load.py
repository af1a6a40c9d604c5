"""The load generators: send a workload's requests to a server for a fixed time and measure the responses.

wrk is used if it is installed and requests are fast. Otherwise an asyncio client is used, which counts a request
in part if it lies partly within the measurement. Each connection has one request in flight at any time. This
module does not depend on a particular server.
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
# The timeout of a request. A plain server may need a minute for 2,048 texts.
PATIENCE_S = 180.0


class LoadError(Exception):
    """Requests failed, so the measured rate is meaningless."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The result of a load: throughput, latency, and the number of requests without a 200 response."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Exchange:
    start: float
    end: float
    status: int

    def fraction_within(self, begin: float, end: float) -> float:
        """Return the fraction of the exchange's duration that lies between two times."""
        overlap = min(self.end, end) - max(self.start, begin)
        return max(overlap, 0.0) / (self.end - self.start)


def has_wrk() -> bool:
    """Return whether the load generator wrk is installed."""
    return shutil.which("wrk") is not None


def send(requests: Requests, port: int, *, warm_s: float, seconds: float) -> Rate:
    """Send a workload to a server: a warm-up first, then the measurement.

    Raises:
        LoadError: A request failed or got a status other than 200, or no request completed in time.
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
    """Send load with wrk, which serves all connections from one thread."""
    assert not any(background), "wrk cannot send background requests"
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
    """Send load from this process. A request that lies partly within the measurement counts in part.

    Each item of `background` adds a client that sends its bodies and is not measured.
    """
    begin = time.monotonic() + warm_s
    end = begin + seconds
    exchanges = asyncio.run(_send(bodies, background, port, clients=clients, until=end))
    latencies_ms = [1000 * (e.end - e.start) for e in exchanges]
    return Rate(
        requests_per_s=sum(e.fraction_within(begin, end) for e in exchanges) / seconds,
        p50_ms=float(np.percentile(latencies_ms, 50)),
        p99_ms=float(np.percentile(latencies_ms, 99)),
        max_ms=max(latencies_ms),
        failed=len([e for e in exchanges if e.status != 200]),
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
        while (start := time.monotonic()) < until:
            writer.write(next(messages))
            status = await _read_response(reader)
            exchanges.append(_Exchange(start, time.monotonic(), status))
    finally:
        writer.close()
    return exchanges


async def request(body: bytes, port: int) -> int:
    """Send one request over a new connection and return the response's status."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
    try:
        writer.write(_message(body))
        return await _read_response(reader)
    finally:
        writer.close()


def _message(body: bytes) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _read_response(reader: asyncio.StreamReader) -> int:
    """Read one complete response and return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    if length:
        await reader.readexactly(int(length))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    return int(head.split(None, 2)[1])
