"""The command behind `make bench`: parse arguments, run the comparison, write the results.

The results are a Markdown table, the raw numbers as JSON and one SVG chart. They include the machine
and the package versions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks import machine
from benchmarks.compare.contenders import (
    CONTENDERS,
    MODEL,
    ROOT,
    Contender,
    base,
    missing,
    model_directory,
    stop_in_order,
)
from benchmarks.compare.picture import draw
from benchmarks.compare.report import Measurement, Row, summarize, table
from benchmarks.compare.rounds import Plan, Rounds
from benchmarks.compare.self_test import client_rates, verdict
from benchmarks.prose import Prose
from benchmarks.workloads import SEED, WORKLOADS, Workload, make_requests

_RESULTS = ROOT / "benchmarks" / "results"
_FULL = {"rounds": 3, "seconds": 6.0, "warm_s": 1.5}
_QUICK = {"rounds": 1, "seconds": 2.0, "warm_s": 0.7}
# A quick run skips these unless --only names them: they are the slowest or the least informative.
_NOT_QUICK = ("large", "beside", "priorities", "one-priority", "plain-tuned", "scale")


def main() -> int:
    """Run the command.

    Returns:
        The exit code: 0 if anything was measured, 1 if nothing was, 130 after Ctrl-C.
    """
    arguments = _arguments()
    stop_in_order()
    try:
        return _bench(arguments)
    except KeyboardInterrupt:
        _print_status("Interrupted. All servers have been stopped.")
        return 130


def _bench(arguments: argparse.Namespace) -> int:
    about = machine.describe()
    plan = _plan(arguments)
    load = about["load_average_before"]
    _print_status(f"{about['processor']}, {about['cores']} cores; load average before: {load}")
    clients = client_rates()
    measurements = list(Rounds(plan, _print_status).run())
    if not measurements:
        return 1
    rows = summarize(measurements, plan.contenders)
    _write("quick" if arguments.quick else "bench", rows, measurements, about, clients)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    contenders, workloads = _select(arguments.only, quick=arguments.quick)
    if arguments.base is not None:
        contenders = [base(arguments.base), *contenders]
    skipped = {one.name: why for one in contenders if (why := missing(one)) is not None}
    for name, why in skipped.items():
        _print_status(f"Skipping {name}: {why}")
    prose = Prose(Tokenizer.from_file(str(model_directory() / "tokenizer.json")), seed=SEED)
    options = {name: getattr(arguments, name) for name in _FULL}
    amounts = _QUICK if arguments.quick else _FULL
    amounts = amounts | {name: value for name, value in options.items() if value is not None}
    return Plan(
        rounds=int(amounts["rounds"]),
        seconds=amounts["seconds"],
        warm_s=amounts["warm_s"],
        contenders=[one for one in contenders if one.name not in skipped],
        requests=[make_requests(one, prose, model=MODEL["name"]) for one in workloads],
    )


def _select(only: Sequence[str], *, quick: bool) -> tuple[Sequence[Contender], Sequence[Workload]]:
    """Return the contenders and workloads that --only names; if it names none of a kind, all of that kind."""
    skipped = _NOT_QUICK if quick else ()
    contenders = [one for one in CONTENDERS if one.name in only]
    workloads = [one for one in WORKLOADS if one.name in only]
    return (
        contenders or [one for one in CONTENDERS if one.name not in skipped],
        workloads or [one for one in WORKLOADS if one.name not in skipped],
    )


def _write(
    name: str,
    rows: Sequence[Row],
    measurements: Sequence[Measurement],
    about: dict[str, Any],
    clients: dict[str, float],
) -> None:
    text = table(rows)
    served = [row for row in rows if row.contender.kind != "ceiling"]
    rates = [row.texts_per_s / row.workload.inputs for row in served]
    client_check = verdict(clients, max(rates, default=0.0))
    summary = machine.summary_line(about)
    _print_status(f"\n{text}\n\n{client_check}\n{summary}")
    raw = {
        "about": about,
        "clients_alone_requests_per_s": clients,
        "measurements": [
            {"contender": one.contender, "workload": one.workload, "round": one.round}
            | one.rate.as_dict()
            for one in measurements
        ],
        "summary": [row.as_dict() for row in rows],
    }
    files = {
        "json": json.dumps(raw, indent=1),
        "md": f"{summary}; `{about['command']}`\n\n{text}\n\n{client_check}\n",
        "svg": draw(rows, title=summary),
    }
    _RESULTS.mkdir(exist_ok=True)
    for suffix, content in files.items():
        Path(_RESULTS, f"{name}.{suffix}").write_text(content)
    _print_status(f"Results: {_RESULTS.relative_to(ROOT)}/{name}.json, .md, .svg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare")
    names = [*(one.name for one in CONTENDERS), *(one.name for one in WORKLOADS)]
    parser.add_argument(
        "--quick", action="store_true", help="run one short round, under five minutes"
    )
    parser.add_argument(
        "--only", nargs="*", default=[], choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="another checkout of this project to compare with"
    )
    parser.add_argument("--rounds", type=int, help="number of times to start each contender")
    parser.add_argument("--seconds", type=float, help="seconds to measure each workload")
    parser.add_argument("--warm-s", type=float, help="seconds of load before each measurement")
    return parser.parse_args()


def _print_status(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
