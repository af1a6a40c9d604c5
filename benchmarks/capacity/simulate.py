"""Simulate a day's traffic within minutes and show how autoscaling follows it.

`python -m benchmarks.capacity.simulate` runs the server with a model that sleeps, because several replicas of it fit on
any machine. It draws load, replicas, queue and refusals as a chart. A table then shows how many replicas a given
load needs, computed from the real model's measured throughput.
"""

import argparse
import asyncio
import math
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks import machine
from benchmarks.capacity.day_picture import Sample, draw
from benchmarks.compare.contenders import (
    CONTENDERS,
    MODEL,
    ROOT,
    THREADS,
    Contender,
    get,
    model_directory,
    running,
    stop_in_order,
)
from benchmarks.load import request, send
from benchmarks.prose import Prose
from benchmarks.workloads import SEED, SHORT, WORKLOADS, Workload, body, make_requests
from tests.support.plumbing import BATCH_S

MOST_REPLICAS = 4
TARGET_UTILIZATION = 0.7
_TEXTS = 4  # texts per request
_NIGHT, _NOON = 15.0, 250.0  # texts per second
_RUSH = (11.0, 12.5, 600.0)  # start, end, texts per second; exceeds the capacity of all replicas
_BULK = (16.0, 512, 12)  # start, texts per request, number of requests
_SCALING = {
    "min_replicas": 1,
    "max_replicas": MOST_REPLICAS,
    "upscale_delay_s": 3,
    "downscale_delay_s": 12,
    "metrics_interval_s": 1,
    "look_back_period_s": 4,
}
_SLEEPING = Contender(
    "day",
    "this server, sleeping model",
    "sleeping",
    {
        "max_queued_tokens": 600 * SHORT,
        "target_utilization": TARGET_UTILIZATION,
        "target_wait_s": 5,
    },
    throughput=True,
    deployment={"autoscaling_config": _SCALING},
)
_LENGTHS = (12, 64, 256)
_RATES = (100, 1_000, 10_000)


def texts_per_s(hour: float) -> float:
    """Return the load at an hour of the day: low at night, highest after noon, plus a rush that overloads."""
    day = _NIGHT + (_NOON - _NIGHT) * math.pow(max(math.sin(math.pi * (hour - 6) / 16), 0), 1.5)
    return max(day, _RUSH[2]) if _RUSH[0] <= hour < _RUSH[1] else day


@dataclass(slots=True)
class Day:
    """The record of the simulated day.

    Attributes:
        samples: one sample per second.
        answered: texts answered since the last sample, by status.
        sent: texts sent since the last sample.
    """

    samples: list[Sample] = field(default_factory=list)
    answered: Counter[int] = field(default_factory=Counter)
    sent: int = 0

    def sample(self, port: int, hour: float) -> None:
        """Append a sample of the counters and of the server's current metrics."""
        scrape = get(port, "/metrics", timeout_s=10).content.decode()
        waiting = sum(
            map(float, re.findall(r"^embeddings_pending_tokens{.*} (\S+)$", scrape, re.MULTILINE))
        )
        self.samples.append(
            Sample(
                hour=hour,
                sent=self.sent,
                answered=self.answered[200],
                refused=self.answered[429],
                failed=sum(n for status, n in self.answered.items() if status not in (200, 429)),
                replicas=scrape.count("\nembeddings_replica_memory_bytes{"),
                waiting_s=waiting / SHORT * BATCH_S,
            )
        )
        self.answered.clear()
        self.sent = 0


async def _live(port: int, seconds: float) -> Day:
    """Send a day's traffic as a Poisson process and take a sample every second."""
    day, generator = Day(), random.Random(SEED)
    text = "a text " * ((SHORT - 2) // 2)
    small = body([text] * _TEXTS, model=MODEL["name"])
    bulk = body([text] * _BULK[1], model=MODEL["name"])
    start = time.monotonic()
    bulk_left = _BULK[2]

    async def send_one(content: bytes, texts: int) -> None:
        day.sent += texts
        day.answered[await request(content, port)] += texts

    async def sample() -> None:
        while True:
            await asyncio.sleep(1)
            hour = (time.monotonic() - start) / seconds * 24
            await asyncio.to_thread(day.sample, port, hour)

    sampler = asyncio.create_task(sample())
    async with asyncio.TaskGroup() as group:
        while (hour := (time.monotonic() - start) / seconds * 24) < 24:
            if bulk_left and hour >= _BULK[0]:
                bulk_left -= 1
                group.create_task(send_one(bulk, _BULK[1]))
            group.create_task(send_one(small, _TEXTS))
            await asyncio.sleep(generator.expovariate(texts_per_s(hour) / _TEXTS))
    sampler.cancel()
    return day


def _measure_throughput() -> dict[int, float]:
    """Measure the texts per second of one replica of the real model, by text length in tokens."""
    contender = next(one for one in CONTENDERS if one.name == "throughput")
    prose = Prose(Tokenizer.from_file(str(model_directory() / "tokenizer.json")), seed=SEED)
    rates = {}
    with running(contender) as port:
        for tokens in _LENGTHS:
            base = WORKLOADS[0]
            workload = Workload(
                base.name, base.title, 64, 1, 512, partial(_constant, tokens), is_slow=True
            )
            load = make_requests(workload, prose, model=MODEL["name"])
            rates[tokens] = send(load, port, warm_s=2, seconds=8).requests_per_s
    return rates


def _constant(tokens: int, _: random.Random) -> int:
    return tokens


def _plan(rates: dict[int, float]) -> str:
    """Return the table of the replicas that each load needs."""
    heads = [f"{tokens} tokens: {rate:.0f} texts/s per replica" for tokens, rate in rates.items()]
    lines = [
        f"| texts/s | {' | '.join(heads)} |",
        "|---:" * (1 + len(rates)) + "|",
    ]
    for load in _RATES:
        counts = [math.ceil(load / (rate * TARGET_UTILIZATION)) for rate in rates.values()]
        lines.append(
            f"| {load:,} | {' | '.join(f'{n:,} ({n * THREADS:,} cores)' for n in counts)} |"
        )
    return "\n".join(lines)


def _summary(day: Day) -> str:
    sent, answered, refused, failed = (
        sum(getattr(sample, name) for sample in day.samples)
        for name in ("sent", "answered", "refused", "failed")
    )
    early = sum(sample.refused for sample in day.samples if sample.replicas < MOST_REPLICAS)
    counts = [sample.replicas for sample in day.samples]
    changes = len([pair for pair in pairwise(counts) if pair[0] != pair[1]])
    return (
        f"{sent:,} texts sent, {answered:,} answered, {refused:,} refused ({early:,} of them with fewer than "
        f"{MOST_REPLICAS} replicas), {failed:,} failed; the number of replicas changed {changes} times"
    )


def main() -> None:
    """Run the simulation, measure the real model's throughput, and write both to files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity.simulate")
    parser.add_argument("--minutes", type=float, default=6)
    minutes = parser.parse_args().minutes
    stop_in_order()
    about = machine.describe()
    with running(_SLEEPING) as port:
        day = asyncio.run(_live(port, minutes * 60))
    plan, summary = _plan(_measure_throughput()), _summary(day)
    folder = Path(ROOT, "benchmarks", "results")
    folder.mkdir(exist_ok=True)
    picture = folder / f"{datetime.now(UTC):%Y-%m-%d}-day.svg"
    picture.write_text(
        draw(day.samples, title=f"A day's traffic in {minutes:g} minutes", most=MOST_REPLICAS)
    )
    head = f"{machine.summary_line(about)}; `{about['command']}`"
    picture.with_suffix(".md").write_text(
        f"{head}\n\n{summary}.\n\n![the day]({picture.name})\n\n{plan}\n"
    )
    print(f"{summary}\n\n{plan}\n\n{picture}")


if __name__ == "__main__":
    main()
