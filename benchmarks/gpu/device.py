"""Measure the device's raw speed, and check that the encoder reports a broken device."""

import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.card import Card, print_status

_LAUNCHES = 3000
_WIDTH = 8192
_COPIED_BYTES = 2**30
# The result of one batch: 1,024 vectors of 768 components in float32.
_ANSWER_BYTES = 3 * 2**20
# Runs in a separate process because CUDA is unusable afterwards. The vocabulary size is raised because otherwise the
# encoder would reject the invalid id before it reaches the GPU.
_BREAK = """
import sys, tempfile
from pathlib import Path
import numpy as np
from serve_app.encoder import EncoderBrokenError, load_encoder
from serve_app.messages import TokenizedInputs
from tests.support.tiny_models import MODELS

with tempfile.TemporaryDirectory() as folder:
    encoder = load_encoder(str(MODELS["mean"](Path(folder))), device="cuda", dtype="float16")
    encoder._engine.vocabulary_size = 10**9
    bad = TokenizedInputs(np.array([2, 10**6, 3], np.int32), np.array([3], np.int32))
    for _ in range(2):
        try:
            print("FOUND", encoder.encode([bad]).failures)
        except EncoderBrokenError:
            print("FOUND EncoderBrokenError")
"""


def rates(card: Card) -> dict[str, Any]:
    """Measure the rates that limit an encoder: kernel launches, matrix products and copies."""
    results: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    tensor = torch.zeros(8, device=card.device)
    start = time.perf_counter()
    for _ in range(_LAUNCHES):
        tensor.add_(1)
    results["launch_us"] = (time.perf_counter() - start) / _LAUNCHES * 1e6
    card.synchronize()
    if not card.is_dry:
        results.update(_cuda_rates(card))
    for name, value in results.items():
        print_status(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    return results


def _cuda_rates(card: Card) -> dict[str, Any]:
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    for kind in (torch.bfloat16, torch.float16):
        left, right = (torch.randn(_WIDTH, _WIDTH, device="cuda", dtype=kind) for _ in range(2))
        seconds = card.seconds(partial(torch.matmul, left, right), least_s=0.4)
        dtype = str(kind).removeprefix("torch.")
        results[f"matrix_tflops_{dtype}"] = 2 * _WIDTH**3 / seconds / 1e12
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = card.seconds(lambda: target.copy_(source), least_s=0.3)
    results["memory_tb_per_s"] = 2 * _COPIED_BYTES / seconds / 1e12
    host = torch.empty(_ANSWER_BYTES, dtype=torch.uint8, pin_memory=True)
    answer = source[:_ANSWER_BYTES]
    copy_s = card.seconds(lambda: host.copy_(answer, non_blocking=True), least_s=0.2)
    results["answer_copied_us"] = copy_s * 1e6
    return results


def broken(card: Card) -> dict[str, Any]:
    """Break the device with an id outside the vocabulary. The encoder must raise EncoderBrokenError each time."""
    if card.is_dry:
        return {"found": "needs a GPU"}
    done = subprocess.run(
        [sys.executable, "-c", _BREAK], capture_output=True, text=True, timeout=90, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    print_status(*found or [done.stderr[-800:]])
    is_right = found == ["FOUND EncoderBrokenError"] * 2
    return {"found": found, "wrong": "" if is_right else "EncoderBrokenError was not raised"}
