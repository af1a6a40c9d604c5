"""What a soak counts, and the tables that come of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

LOST = "connection lost"


@dataclass(slots=True)
class Costs:
    """What went wrong after which event.

    Attributes:
        last: the event that was last.
        happened: how often each did.
        failures: requests that were neither answered as expected nor refused with 429, by the event before them and
            what they were answered.
    """

    last: str = "before any event"
    happened: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)

    def begin(self, event: str) -> None:
        """Note an event."""
        self.last = event
        self.happened[event] += 1


@dataclass(slots=True)
class Tally:
    """What one kind of client was answered.

    Attributes:
        answers: by status, and those that never came.
        seconds: of the answers that were as expected.
    """

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def note(self, status: int, seconds: float, expected: int) -> None:
        """Count an answer."""
        self.answers[str(status)] += 1
        if status == expected:
            self.seconds.append(seconds)


def answers_table(tallies: Mapping[str, Tally]) -> str:
    """Return what each kind of client was answered."""
    lines = [
        "| client | requests | answered | 429 | 503 | other | lost | p50, ms | p99, ms |",
        "|---" + "|---:" * 8 + "|",
    ]
    for name, tally in tallies.items():
        answers, seconds = tally.answers, tally.seconds
        right = len(seconds)
        named = right + answers["429"] + answers["503"] + answers[LOST]
        p50, p99 = (f"{1000 * np.percentile(seconds, q):.0f}" if seconds else "-" for q in (50, 99))
        counts = (answers.total(), right, answers["429"], answers["503"])
        cells = (name, *counts, answers.total() - named, answers[LOST], p50, p99)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def memory_table(start: Mapping[str, int], end: Mapping[str, int]) -> str:
    """Return the resident bytes of each kind of process at start and end."""
    lines = ["| process | MB at start | MB at end |", "|---|---:|---:|"]
    lines += [
        f"| {role} | {start.get(role, 0) / 1e6:.0f} | {end.get(role, 0) / 1e6:.0f} |"
        for role in dict(start) | dict(end)
    ]
    return "\n".join(lines)


def costs_table(costs: Costs) -> str:
    """Return what went wrong after each kind of event."""
    kinds = sorted({kind for _, kind in costs.failures})
    lines = [
        f"| event | times | {' | '.join(f'requests: {kind}' for kind in kinds) or 'failures'} |",
        "|---|---:" + "|---:" * max(len(kinds), 1) + "|",
    ]
    for event, times in costs.happened.items():
        cells = [str(costs.failures[event, kind]) for kind in kinds] or ["0"]
        lines.append(f"| {event} | {times} | {' | '.join(cells)} |")
    return "\n".join(lines)
