"""Measure the ceiling: the encoder alone, without HTTP, queues or tokenization.

Run as a program, this module reads its work as JSON from standard input and writes its results as JSON to
standard output; `measure` describes both. Each run gets a fresh process, as each server does.
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

# Texts per call. This is far more than a token budget holds, so larger calls would not be faster.
_TEXTS = 256
BUDGETS = (512, 1024, 2048, 4096, 8192)
_TRIAL_S = 0.4


class CeilingError(Exception):
    """The encoder could not be measured. The message ends with the process's output."""


def measure(
    source: str, model: Mapping[str, Any], workloads: Sequence[Mapping[str, Any]], *, threads: int
) -> dict[str, Any]:
    """Measure one encoder with the texts of each workload.

    Args:
        source: the model's directory.
        model: more keyword arguments for `load_encoder`.
        workloads: a mapping per workload with its `name`, its `calls` (lists of texts, one list per encoder
            call), the number of texts per request (`inputs`) and the `seconds` to measure.
        threads: the same number of threads as the servers use.

    Returns:
        A mapping per workload name with the `rate` in requests and `best_batch_tokens`, the fastest token
        budget of `BUDGETS`.
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
    texts_per_s, durations_ms = _encode(encoder, calls, best, seconds=work["seconds"])
    rate = Rate(
        requests_per_s=texts_per_s / work["inputs"],
        p50_ms=float(np.percentile(durations_ms, 50)),
        p99_ms=float(np.percentile(durations_ms, 99)),
        max_ms=max(durations_ms),
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
    """Call the encoder until the time is up, at least once.

    Returns:
        Texts per second, and the milliseconds of each call.
    """
    durations_ms: list[float] = []
    texts = 0
    start = now = time.perf_counter()
    while now - start < seconds:
        inputs = next(calls)
        failures = encoder.encode([inputs], max_batch_tokens=budget).failures
        assert not failures, failures
        texts += len(inputs)
        then, now = now, time.perf_counter()
        durations_ms.append(1000 * (now - then))
    return texts / (now - start), durations_ms


def in_another_process(
    source: str,
    model: Mapping[str, Any],
    requests: Sequence[Requests],
    *,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Run `measure` in a separate process. Each call holds as many texts as the workload has in flight.

    Raises:
        CeilingError: The process failed.
    """
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
        raise CeilingError(f"the in-process encoder failed: {done.stderr[-2000:]}")
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
