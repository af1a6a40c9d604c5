"""A day's traffic within minutes: `python -m benchmarks.capacity.simulate` shows how replicas follow it.

The server runs with a model that sleeps, of which a few replicas fit any machine; load, replicas, queue and refusals
are drawn into a picture. Beside it stands a table of the replicas that so many texts a second need, from the real
model's measured pace.
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
_TEXTS = 4  # in a request
_NIGHT, _NOON = 15.0, 250.0  # texts a second
_RUSH = (11.0, 12.5, 600.0)  # from, until, and texts a second: more than all replicas can do
_BULK = (16.0, 512, 12)  # when, texts in a request, requests
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
    "this server, a model that sleeps",
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
    """Return the load at an hour of the day: little at night, most after noon, and a rush that is too much."""
    day = _NIGHT + (_NOON - _NIGHT) * math.pow(max(math.sin(math.pi * (hour - 6) / 16), 0), 1.5)
    return max(day, _RUSH[2]) if _RUSH[0] <= hour < _RUSH[1] else day


@dataclass(slots=True)
class Day:
    """What happens on the simulated day.

    Attributes:
        samples: one a second.
        answered: texts since the last sample, by status.
        sent: texts since the last sample.
    """

    samples: list[Sample] = field(default_factory=list)
    answered: Counter[int] = field(default_factory=Counter)
    sent: int = 0

    def sample(self, port: int, hour: float) -> None:
        """Note what the server says of itself now."""
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
    """Send a day's traffic, at random moments of the right density, and sample once a second."""
    day, generator = Day(), random.Random(SEED)
    text = "a text " * ((SHORT - 2) // 2)
    few, many = (
        body([text] * _TEXTS, model=MODEL["name"]),
        body([text] * _BULK[1], model=MODEL["name"]),
    )
    begun = time.monotonic()
    bulk_left = _BULK[2]

    async def one(content: bytes, texts: int) -> None:
        day.sent += texts
        day.answered[await request(content, port)] += texts

    async def sample() -> None:
        while True:
            await asyncio.sleep(1)
            hour = (time.monotonic() - begun) / seconds * 24
            await asyncio.to_thread(day.sample, port, hour)

    sampler = asyncio.create_task(sample())
    async with asyncio.TaskGroup() as group:
        while (hour := (time.monotonic() - begun) / seconds * 24) < 24:
            if bulk_left and hour >= _BULK[0]:
                bulk_left -= 1
                group.create_task(one(many, _BULK[1]))
            group.create_task(one(few, _TEXTS))
            await asyncio.sleep(generator.expovariate(texts_per_s(hour) / _TEXTS))
    sampler.cancel()
    return day


def _paces() -> dict[int, float]:
    """Measure texts a second of one replica of the real model on this machine, by their length in tokens."""
    contender = next(one for one in CONTENDERS if one.name == "throughput")
    prose = Prose(Tokenizer.from_file(str(model_directory() / "tokenizer.json")), seed=SEED)
    paces = {}
    with running(contender) as port:
        for tokens in _LENGTHS:
            kind = WORKLOADS[0]
            workload = Workload(
                kind.name, kind.title, 64, 1, 512, partial(_same, tokens), is_slow=True
            )
            load = make_requests(workload, prose, model=MODEL["name"])
            paces[tokens] = send(load, port, warm_s=2, seconds=8).requests_per_s
    return paces


def _same(tokens: int, _: random.Random) -> int:
    return tokens


def _plan(paces: dict[int, float]) -> str:
    """Return the table of replicas."""
    heads = [f"{tokens} tokens: {pace:.0f} texts/s a replica" for tokens, pace in paces.items()]
    lines = [
        f"| texts/s | {' | '.join(heads)} |",
        "|---:" * (1 + len(paces)) + "|",
    ]
    for rate in _RATES:
        counts = [math.ceil(rate / (pace * TARGET_UTILIZATION)) for pace in paces.values()]
        lines.append(
            f"| {rate:,} | {' | '.join(f'{n:,} ({n * THREADS:,} cores)' for n in counts)} |"
        )
    return "\n".join(lines)


def _summary(day: Day) -> str:
    sent, answered, refused, failed = (
        sum(getattr(sample, name) for sample in day.samples)
        for name in ("sent", "answered", "refused", "failed")
    )
    early = sum(sample.refused for sample in day.samples if sample.replicas < MOST_REPLICAS)
    changes = sum(
        a.replicas != b.replicas for a, b in zip(day.samples, day.samples[1:], strict=False)
    )
    return (
        f"{sent:,} texts sent, {answered:,} answered, {refused:,} refused (of these {early:,} with fewer than "
        f"{MOST_REPLICAS} replicas), {failed:,} failed; {changes} changes of the number of replicas"
    )


def main() -> None:
    """Run the day, measure the paces, and write both down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity.simulate")
    parser.add_argument("--minutes", type=float, default=6)
    minutes = parser.parse_args().minutes
    stop_in_order()
    about = machine.describe()
    with running(_SLEEPING) as port:
        day = asyncio.run(_live(port, minutes * 60))
    plan, summary = _plan(_paces()), _summary(day)
    folder = Path(ROOT, "benchmarks", "results")
    folder.mkdir(exist_ok=True)
    picture = folder / f"{datetime.now(UTC):%Y-%m-%d}-day.svg"
    picture.write_text(
        draw(day.samples, title=f"A day's traffic in {minutes:g} minutes", most=MOST_REPLICAS)
    )
    place = f"{machine.place(about)}; `{about['command']}`"
    picture.with_suffix(".md").write_text(
        f"{place}\n\n{summary}.\n\n![the day]({picture.name})\n\n{plan}\n"
    )
    print(f"{summary}\n\n{plan}\n\n{picture}")


if __name__ == "__main__":
    main()
