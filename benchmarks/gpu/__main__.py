"""`python -m benchmarks.gpu`: check and measure the encoder on a GPU within a time limit.

It runs its parts in order, writes `results.json` after each, and skips parts for which too little time is left.
`--dry` runs the same code on a CPU with tiny models, to find bugs without a GPU.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from transformers.utils import logging as transformers_logging

from benchmarks.gpu import correctness, device, throughput
from benchmarks.gpu.card import Card, print_status

Part = Callable[[Card], Any]
# Each part with the minimum number of seconds that it needs.
PARTS: Final[dict[str, tuple[Part, float]]] = {
    "device": (device.rates, 20),
    "tiny": (correctness.tiny_models, 60),
    "large": (correctness.large_model, 60),
    "throughput": (throughput.table, 90),
    "profile": (throughput.profile, 30),
    "broken": (device.broken, 35),
}


def main() -> int:
    """Run the parts.

    Returns:
        The exit code: 0 if every part ran and passed, 1 otherwise.
    """
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    arguments.out.mkdir(parents=True, exist_ok=True)
    card = Card(
        is_dry=arguments.dry,
        dtype=arguments.dtype,
        sizes=tuple(arguments.sizes),
        out=arguments.out,
        ends=time.monotonic() + 60 * arguments.minutes,
    )
    results: dict[str, Any] = {}
    for name in arguments.only or PARTS:
        part, needed_s = PARTS[name]
        if card.left_s < needed_s:
            print_status(
                f"Skipping {name}: it needs {needed_s:.0f} s, but only {card.left_s:.0f} s are left"
            )
            results[name] = {"wrong": "skipped"}
        else:
            print_status(f"--- {name}")
            results[name] = _run(part, card)
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1, default=str))
    wrong = [name for name, result in results.items() if result.get("wrong")]
    if wrong:
        print_status(f"Failed or skipped: {', '.join(wrong)}")
        return 1
    print_status("All parts passed.")
    return 0


def _run(part: Part, card: Card) -> Any:
    try:
        return part(card)
    except Exception:  # the other parts should still run
        error = traceback.format_exc()
        print_status(error)
        return {"wrong": error}
    finally:
        card.free_memory()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--dry", action="store_true", help="run on a CPU with tiny models")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--sizes", nargs="+", default=list(Card.all_sizes()), metavar="SIZE")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART")
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu"), help="the folder for the results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
