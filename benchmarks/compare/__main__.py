"""`make bench`: what is compared, for how long, and where the results go.

Results are a table, the raw numbers and one picture, with the machine and the versions that they hold for.
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
# Not part of a quick run, unless ONLY names them: what takes longest, and what says least.
_NOT_QUICK = ("large", "beside", "lanes", "one-lane", "plain-tuned", "scale")


def main() -> int:
    """Run the command: 0 when something was measured, 1 when nothing was, 130 after Ctrl-C."""
    arguments = _arguments()
    stop_in_order()
    try:
        return _bench(arguments)
    except KeyboardInterrupt:
        _say("Stopped; all that was started here has been ended.")
        return 130


def _bench(arguments: argparse.Namespace) -> int:
    about = machine.describe()
    plan = _plan(arguments)
    _say(
        f"{about['processor']}, {about['cores']} cores; load before: {about['load_average_before']}"
    )
    clients = client_rates()
    measurements = list(Rounds(plan, _say).run())
    if not measurements:
        return 1
    rows = summarize(measurements, plan.contenders)
    _write("quick" if arguments.quick else "bench", rows, measurements, about, clients)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    contenders, workloads = _chosen(arguments.only, quick=arguments.quick)
    if arguments.base is not None:
        contenders = [base(arguments.base), *contenders]
    left_out = {one.name: why for one in contenders if (why := missing(one)) is not None}
    for name, why in left_out.items():
        _say(f"without {name}: {why}")
    prose = Prose(Tokenizer.from_file(str(model_directory() / "tokenizer.json")), seed=SEED)
    given = {name: getattr(arguments, name) for name in _FULL}
    amounts = _QUICK if arguments.quick else _FULL
    amounts = amounts | {name: value for name, value in given.items() if value is not None}
    return Plan(
        rounds=int(amounts["rounds"]),
        seconds=amounts["seconds"],
        warm_s=amounts["warm_s"],
        contenders=[one for one in contenders if one.name not in left_out],
        requests=[make_requests(one, prose, model=MODEL["name"]) for one in workloads],
    )


def _chosen(only: Sequence[str], *, quick: bool) -> tuple[Sequence[Contender], Sequence[Workload]]:
    """Return what ONLY names; naming contenders leaves all workloads in, and the other way round."""
    left_out = _NOT_QUICK if quick else ()
    contenders = [one for one in CONTENDERS if one.name in only]
    workloads = [one for one in WORKLOADS if one.name in only]
    return (
        contenders or [one for one in CONTENDERS if one.name not in left_out],
        workloads or [one for one in WORKLOADS if one.name not in left_out],
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
    told = verdict(clients, max(rates, default=0.0))
    place = machine.place(about)
    _say(f"\n{text}\n\n{told}\n{place}")
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
        "md": f"{place}; `{about['command']}`\n\n{text}\n\n{told}\n",
        "svg": draw(rows, title=place),
    }
    _RESULTS.mkdir(exist_ok=True)
    for ending, content in files.items():
        Path(_RESULTS, f"{name}.{ending}").write_text(content)
    _say(f"written: {_RESULTS.relative_to(ROOT)}/{name}.json, .md, .svg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare")
    names = [*(one.name for one in CONTENDERS), *(one.name for one in WORKLOADS)]
    parser.add_argument("--quick", action="store_true", help="one short round, under five minutes")
    parser.add_argument(
        "--only", nargs="*", default=[], choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="another checkout of this project, to compare with"
    )
    parser.add_argument("--rounds", type=int, help="how often each contender is started")
    parser.add_argument("--seconds", type=float, help="counted seconds of each load")
    parser.add_argument("--warm-s", type=float, help="seconds of load before those")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
