"""Measure memory use over many requests: `python -m benchmarks.capacity.memory`.

It starts the server, sends 100,000 short requests, and prints the resident memory of an ingress replica and of a model
replica over time. For comparison it prints the memory of a process that only holds the same model.
"""

import argparse
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from tokenizers import Tokenizer

from benchmarks.compare.contenders import (
    CONTENDERS,
    MODEL,
    THREADS,
    model_directory,
    running,
    stop_in_order,
)
from benchmarks.load import HOST, send
from benchmarks.prose import Prose
from benchmarks.workloads import SEED, WORKLOADS, Requests, make_requests

_PART_S = 20.0
_METRICS = {
    "ingress": "embeddings_ingress_process_resident_memory_bytes",
    "model": "embeddings_replica_memory_bytes",
}
# Prints the memory of a process without Ray that loads and warms up the encoder as a replica does.
_ALONE = """
import psutil, sys
from serve_app.encoder import load_encoder
encoder = load_encoder(sys.argv[1], threads=int(sys.argv[2]), device="cpu")
print(psutil.Process().memory_info().rss)
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity.memory")
    parser.add_argument("--requests", type=int, default=100_000)
    most = parser.parse_args().requests
    stop_in_order()
    print(f"process with only the encoder: {_alone_bytes() / 1e6:.0f} MB")
    contender = next(one for one in CONTENDERS if one.name == "throughput")
    with running(contender) as port:
        print("\n| requests | " + " | ".join(f"{name} replica, MB" for name in _METRICS) + " |")
        print("|---:" * (1 + len(_METRICS)) + "|")
        print(_row(port), flush=True)
        for _ in _parts(port, most):
            print(_row(port), flush=True)


def _parts(port: int, most: int) -> Iterator[None]:
    requests = _short_requests()
    while _answered(port) < most:
        send(requests, port, warm_s=0, seconds=_PART_S)
        yield


def _short_requests() -> Requests:
    prose = Prose(Tokenizer.from_file(str(model_directory() / "tokenizer.json")), seed=SEED)
    return make_requests(WORKLOADS[0], prose, model=MODEL["name"])


def _row(port: int) -> str:
    scrape = _scrape(port)
    largest = [max(_values(scrape, metric)) / 1e6 for metric in _METRICS.values()]
    return f"| {_answered(port)} | " + " | ".join(f"{value:.0f}" for value in largest) + " |"


def _answered(port: int) -> int:
    return int(sum(_values(_scrape(port), "embeddings_requests_total")))


def _values(scrape: str, metric: str) -> list[float]:
    values = re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", scrape, re.MULTILINE)
    return [float(value) for value in values]


def _scrape(port: int) -> str:
    """Scrape the metrics until they include the model replica."""
    while True:
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:  # our own server
            scrape: str = answer.read().decode()
        if _values(scrape, _METRICS["model"]):
            return scrape
        time.sleep(0.1)


def _alone_bytes() -> int:
    command = [sys.executable, "-c", _ALONE, str(model_directory()), str(THREADS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


if __name__ == "__main__":
    main()
