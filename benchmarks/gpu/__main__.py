"""`python -m benchmarks.gpu`: check and measure the encoder on a GPU, within some minutes.

Runs its parts in order, writes `results.json` after each, and skips a part for which no time is left. `--dry` runs the
same code on a CPU with tiny sizes, to find mistakes before a card is at hand.
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
from benchmarks.gpu.card import Card, say

Part = Callable[[Card], Any]
# Each with the seconds that it needs at least.
PARTS: Final[dict[str, tuple[Part, float]]] = {
    "device": (device.rates, 20),
    "tiny": (correctness.tiny_models, 60),
    "large": (correctness.large_model, 60),
    "throughput": (throughput.table, 90),
    "profile": (throughput.profile, 30),
    "broken": (device.broken, 35),
}


def main() -> int:
    """Run the parts: 0 if each of them ran and found nothing wrong, else 1."""
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
            say(f"skipped {name}: {card.left_s:.0f} s are left, and it needs {needed_s:.0f}")
            results[name] = {"wrong": "skipped"}
        else:
            say(f"--- {name}")
            results[name] = _run(part, card)
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1, default=str))
    wrong = [name for name, found in results.items() if found.get("wrong")]
    say(f"wrong or not run: {', '.join(wrong)}" if wrong else "every part ran and is right")
    return 1 if wrong else 0


def _run(part: Part, card: Card) -> Any:
    try:
        return part(card)
    except Exception:  # the other parts are still worth their minutes
        error = traceback.format_exc()
        say(error)
        return {"wrong": error}
    finally:
        card.free_memory()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--sizes", nargs="+", default=list(Card.all_sizes()), metavar="SIZE")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="a folder for results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
