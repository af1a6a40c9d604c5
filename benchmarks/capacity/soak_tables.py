"""The counters of a soak test and the tables made from them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

LOST = "connection lost"


@dataclass(slots=True)
class Costs:
    """Failed requests after each event.

    Attributes:
        last: the most recent event.
        happened: number of times that each event happened.
        failures: requests with neither the expected status nor 429, by the preceding event and the status.
    """

    last: str = "before any event"
    happened: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)

    def begin(self, event: str) -> None:
        """Record that an event happens now."""
        self.last = event
        self.happened[event] += 1


@dataclass(slots=True)
class Tally:
    """The responses that one kind of client got.

    Attributes:
        answers: number of responses by status; LOST counts broken connections.
        seconds: latencies of the responses with the expected status.
    """

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def record(self, status: int, seconds: float, expected: int) -> None:
        """Count a response."""
        self.answers[str(status)] += 1
        if status == expected:
            self.seconds.append(seconds)


def answers_table(tallies: Mapping[str, Tally]) -> str:
    """Return the table of the responses by kind of client."""
    lines = [
        "| client | requests | as expected | 429 | 503 | other | lost | p50, ms | p99, ms |",
        "|---" + "|---:" * 8 + "|",
    ]
    for name, tally in tallies.items():
        answers, seconds = tally.answers, tally.seconds
        expected = len(seconds)
        other = answers.total() - expected - answers["429"] - answers["503"] - answers[LOST]
        p50, p99 = (f"{1000 * np.percentile(seconds, q):.0f}" if seconds else "-" for q in (50, 99))
        counts = (answers.total(), expected, answers["429"], answers["503"])
        cells = (name, *counts, other, answers[LOST], p50, p99)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def memory_table(start: Mapping[str, int], end: Mapping[str, int]) -> str:
    """Return the table of the resident memory by kind of process, from bytes at start and end."""
    lines = ["| process | MB at start | MB at end |", "|---|---:|---:|"]
    lines += [
        f"| {role} | {start.get(role, 0) / 1e6:.0f} | {end.get(role, 0) / 1e6:.0f} |"
        for role in dict(start) | dict(end)
    ]
    return "\n".join(lines)


def costs_table(costs: Costs) -> str:
    """Return the table of the failures by kind of event."""
    kinds = sorted({kind for _, kind in costs.failures})
    lines = [
        f"| event | times | {' | '.join(f'requests: {kind}' for kind in kinds) or 'failures'} |",
        "|---|---:" + "|---:" * max(len(kinds), 1) + "|",
    ]
    for event, times in costs.happened.items():
        cells = [str(costs.failures[event, kind]) for kind in kinds] or ["0"]
        lines.append(f"| {event} | {times} | {' | '.join(cells)} |")
    return "\n".join(lines)
