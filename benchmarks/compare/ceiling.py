"""The encoder alone: what the model gives in a process of its own, without HTTP, queues or a tokenizer in the way.

Reads its work as JSON on standard input and writes its answer as JSON; see `measure` for both. One process for one run,
so that every run has a fresh one, as the servers do.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.load import Rate
from benchmarks.workloads import Requests
from serve_app.encoder import Encoder, load_encoder
from serve_app.messages import TokenizedInputs

# In one call; far more than a token budget, so that a larger request would gain nothing by being given whole.
_TEXTS = 256
BUDGETS = (512, 1024, 2048, 4096, 8192)
_TRIAL_S = 0.4


class CeilingError(Exception):
    """The encoder could not be measured; the message ends with what its process said."""


def measure(
    source: str, model: Mapping[str, Any], workloads: Sequence[Mapping[str, Any]], *, threads: int
) -> dict[str, Any]:
    """Measure one encoder with the texts of some workloads.

    Args:
        source: where the model is.
        model: arguments of `load_encoder` beside source and threads.
        workloads: of each the `name`, the `calls` (lists of texts, each given to the encoder in one call), the texts
            in a request (`inputs`) and the `seconds` to measure.
        threads: as many as the servers may use.

    Returns:
        By name: the rate in requests, and the token budget that was the best of `BUDGETS`.
    """
    encoder = load_encoder(source, threads=threads, device="cpu", **model)
    tokenizer = Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return {work["name"]: _measure_one(encoder, tokenizer, work) for work in workloads}


def _measure_one(encoder: Encoder, tokenizer: Tokenizer, work: Mapping[str, Any]) -> dict[str, Any]:
    calls = cycle([_tokenized(tokenizer, texts) for texts in work["calls"]])
    trials = {budget: _encode(encoder, calls, budget, seconds=_TRIAL_S) for budget in BUDGETS}
    best = max(trials, key=lambda budget: trials[budget][0])
    texts_per_s, taken_ms = _encode(encoder, calls, best, seconds=work["seconds"])
    rate = Rate(
        requests_per_s=texts_per_s / work["inputs"],
        p50_ms=float(np.percentile(taken_ms, 50)),
        p99_ms=float(np.percentile(taken_ms, 99)),
        max_ms=max(taken_ms),
        failed=0,
    )
    return {"rate": rate.as_dict(), "best_batch_tokens": best}


def _tokenized(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenizedInputs:
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    lengths = np.array([len(one) for one in ids], np.int32)
    return TokenizedInputs(np.concatenate(ids).astype(np.int32), lengths)


def _encode(
    encoder: Encoder, calls: Iterator[TokenizedInputs], budget: int, *, seconds: float
) -> tuple[float, list[float]]:
    """Return texts a second, and the milliseconds of each call; at least one call."""
    taken_ms: list[float] = []
    texts = 0
    begun = now = time.perf_counter()
    while now - begun < seconds:
        inputs = next(calls)
        failures = encoder.encode([inputs], max_batch_tokens=budget).failures
        assert not failures, failures
        texts += len(inputs)
        then, now = now, time.perf_counter()
        taken_ms.append(1000 * (now - then))
    return texts / (now - begun), taken_ms


def in_another_process(
    source: str,
    model: Mapping[str, Any],
    requests: Sequence[Requests],
    *,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Run `measure` in a process of its own; each call has what the workload's clients have under way."""
    workloads = [
        {
            "name": one.workload.name,
            "inputs": one.workload.inputs,
            "seconds": seconds,
            "calls": list(_calls(one)),
        }
        for one in requests
        if not one.workload.background
    ]
    work = {"source": source, "model": dict(model), "workloads": workloads, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare.ceiling"],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CeilingError(f"the encoder in process failed: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _calls(requests: Requests) -> Iterator[list[str]]:
    clients = requests.workload.clients
    for start in range(0, len(requests.texts), clients):
        texts = [text for request in requests.texts[start : start + clients] for text in request]
        for first in range(0, len(texts), _TEXTS):
            yield texts[first : first + _TEXTS]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        answer = measure(**json.load(sys.stdin))
    json.dump(answer, sys.stdout)
