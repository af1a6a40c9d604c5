"""Turn measurements into the result table: medians over the rounds, ratios and targets.

Pure functions without servers, files or clocks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.compare.contenders import CONTENDERS, MODEL, Contender
from benchmarks.load import Rate
from benchmarks.workloads import LARGE_TOKENS, WORKLOADS, Workload

_BATCH_TOKENS: int = MODEL.get("max_batch_tokens") or 2048  # the default on a CPU


@dataclass(frozen=True, slots=True)
class Measurement:
    """The rate of one workload on one contender in one round."""

    contender: str
    workload: str
    round: int
    rate: Rate


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: one contender under one workload.

    A ratio is None if its base was not measured or if it does not apply to the workload.

    Attributes:
        texts_per_s: texts per second, median over the rounds.
        least: texts per second of the slowest round.
        most: texts per second of the fastest round.
        p50_ms: median latency, median over the rounds.
        p99_ms: 99th percentile of the latency, median over the rounds.
        longest_ms: maximum latency of all rounds.
        over_infinity: speedup over infinity, in texts per second.
        over_plain: speedup over the plain Ray Serve application.
        over_base: speedup over the other checkout.
        efficiency: texts per second relative to the same encoder in process.
        longest_in_budgets: maximum latency, in units of the time the encoder alone needs for one token budget. Only
            for workloads with background clients.
        of_linear: texts per second relative to linear scaling from one replica. Only for sleeping models.
        added_ms: median latency above that of the encoder alone. Only for one client with one text per request.
    """

    workload: Workload
    contender: Contender
    texts_per_s: float
    least: float
    most: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    over_infinity: float | None = None
    over_plain: float | None = None
    over_base: float | None = None
    efficiency: float | None = None
    added_ms: float | None = None
    longest_in_budgets: float | None = None
    of_linear: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a JSON-serializable dict."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return fields | {"workload": self.workload.name, "contender": self.contender.name}


@dataclass(frozen=True, slots=True)
class Target:
    """A target for one figure of a contender under a workload.

    Attributes:
        bound: the minimum, or the maximum if `at_most` is set.
    """

    workload: str
    contender: str
    figure: str
    bound: float
    at_most: bool = False

    def is_met(self, row: Row) -> bool | None:
        """Return whether a row meets the target, or None if the figure is missing."""
        value = getattr(row, self.figure)
        if value is None:
            return None
        return bool(value <= self.bound if self.at_most else value >= self.bound)


TARGETS = (
    Target("short", "throughput", "over_infinity", 2.5),
    Target("short", "throughput-bf16", "over_infinity", 4),
    Target("short", "throughput", "over_plain", 12),
    Target("short", "throughput", "efficiency", 0.5),
    Target("mixed", "throughput", "over_infinity", 2.5),
    Target("mixed", "throughput-bf16", "over_infinity", 5),
    Target("mixed", "throughput", "efficiency", 0.8),
    Target("many", "throughput", "over_infinity", 2),
    Target("many", "throughput-bf16", "over_infinity", 3.5),
    Target("many", "throughput", "efficiency", 0.9),
    Target("one", "throughput", "added_ms", 3, at_most=True),
    Target("large", "throughput", "efficiency", 0.95),
    Target("beside", "throughput", "longest_in_budgets", 2, at_most=True),
    Target("scale", "sleep-2", "of_linear", 0.9),
    Target("scale", "sleep-4", "of_linear", 0.9),
)
_HEADS = (
    *("", "texts/s", "min", "max", "p50 ms", "p99 ms", "max ms"),
    *("x infinity", "x plain", "x base", "efficiency", "+ms", "budgets", "linear"),
)


def summarize(
    measurements: Iterable[Measurement], contenders: Sequence[Contender] = CONTENDERS
) -> list[Row]:
    """Return a row for each measured pair of workload and contender, in the order of their definition."""
    by_pair: dict[tuple[str, str], list[Rate]] = {}
    for one in measurements:
        by_pair.setdefault((one.workload, one.contender), []).append(one.rate)
    return [
        _row(workload, contender, by_pair)
        for workload in WORKLOADS
        for contender in contenders
        if (workload.name, contender.name) in by_pair
    ]


def _row(
    workload: Workload, contender: Contender, by_pair: Mapping[tuple[str, str], Sequence[Rate]]
) -> Row:
    def texts(name: str | None) -> float | None:
        rates = by_pair.get((workload.name, name or ""))
        return median(rate.requests_per_s for rate in rates) * workload.inputs if rates else None

    def p50(name: str | None) -> float | None:
        rates = by_pair.get((workload.name, name or ""))
        return median(rate.p50_ms for rate in rates) if rates else None

    rates = by_pair[workload.name, contender.name]
    longest_ms = max(rate.max_ms for rate in rates)
    ceiling = _ceiling_of(contender)
    return Row(
        workload,
        contender,
        texts_per_s=median(rate.requests_per_s for rate in rates) * workload.inputs,
        least=min(rate.requests_per_s for rate in rates) * workload.inputs,
        most=max(rate.requests_per_s for rate in rates) * workload.inputs,
        p50_ms=median(rate.p50_ms for rate in rates),
        p99_ms=median(rate.p99_ms for rate in rates),
        longest_ms=longest_ms,
        over_infinity=_ratio(texts(contender.name), texts("infinity")),
        over_plain=_ratio(texts(contender.name), texts("plain")),
        over_base=_ratio(texts(contender.name), texts("base")),
        efficiency=_ratio(texts(contender.name), texts(ceiling)),
        added_ms=_difference(p50(contender.name), p50(ceiling))
        if workload.in_flight == 1
        else None,
        longest_in_budgets=_ratio(longest_ms, _budget_ms(by_pair.get(("large", ceiling or ""), ())))
        if workload.background
        else None,
        of_linear=_ratio(texts(contender.name), _times(texts("sleep-1"), contender.replicas))
        if workload.sleeping
        else None,
    )


def _ceiling_of(contender: Contender) -> str | None:
    """Return the name of the in-process encoder with the same settings. Only our own servers have one."""
    if contender.kind != "ours":
        return None
    ceilings = (one for one in CONTENDERS if one.kind == "ceiling" and one.model == contender.model)
    return next((one.name for one in ceilings), None)


def _budget_ms(large: Sequence[Rate]) -> float | None:
    """Return the time that the encoder alone needs for one token budget, from the workload `large`."""
    if not large:
        return None
    tokens_per_s = median(rate.requests_per_s for rate in large) * LARGE_TOKENS
    return 1000 * _BATCH_TOKENS / tokens_per_s


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _times(value: float | None, factor: int) -> float | None:
    return value * factor if value is not None else None


def _difference(value: float | None, base: float | None) -> float | None:
    return value - base if value is not None and base is not None else None


def table(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table, followed by the targets."""
    cells = [list(_HEADS)]
    for workload in WORKLOADS:
        group = [row for row in rows if row.workload == workload]
        if group:
            cells.append([f"**{workload.title}**", *[""] * (len(_HEADS) - 1)])
            cells += [_cells(row) for row in group]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    lines = [_line(line, widths) for line in cells]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], _line(rule, widths), *lines[1:], "", *_targets(rows)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(aligned)} |"


def _cells(row: Row) -> list[str]:
    ratios = (
        row.over_infinity,
        row.over_plain,
        row.over_base,
        row.efficiency,
        row.added_ms,
        row.longest_in_budgets,
        row.of_linear,
    )
    return [
        row.contender.title,
        *(f"{value:.4g}" for value in (row.texts_per_s, row.least, row.most)),
        *(f"{value:.1f}" for value in (row.p50_ms, row.p99_ms, row.longest_ms)),
        *("" if value is None else f"{value:.2f}" for value in ratios),
    ]


def _targets(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each target with the measured value."""
    for target in TARGETS:
        for row in rows:
            if (row.workload.name, row.contender.name) == (target.workload, target.contender):
                met = target.is_met(row)
                if met is not None:
                    value = getattr(row, target.figure)
                    limit = f"at {'most' if target.at_most else 'least'} {target.bound:g}"
                    name = f"{target.workload}, {row.contender.title}, {target.figure}"
                    yield f"{'met   ' if met else 'MISSED'} {name}: {value:.2f}, target {limit}"
