"""What the device itself can do, and what becomes of an encoder whose device breaks."""

import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.card import Card, say

_LAUNCHES = 3000
_WIDTH = 8192
_COPIED_BYTES = 2**30
# One batch of 1,024 vectors of 768 components in float32, as it comes back from the device.
_ANSWER_BYTES = 3 * 2**20
# In a process of its own, which has no device any more afterwards. The vocabulary's size would have the bad id found
# before the GPU sees it.
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
    """Return what bounds an encoder: launches, matrix products, copies."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    some = torch.zeros(8, device=card.device)
    began = time.perf_counter()
    for _ in range(_LAUNCHES):
        some.add_(1)
    found["launch_us"] = (time.perf_counter() - began) / _LAUNCHES * 1e6
    card.synchronize()
    if not card.is_dry:
        found |= _rates_of_cuda(card)
    for name, value in found.items():
        say(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    return found


def _rates_of_cuda(card: Card) -> dict[str, Any]:
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    for kind in (torch.bfloat16, torch.float16):
        left, right = (torch.randn(_WIDTH, _WIDTH, device="cuda", dtype=kind) for _ in range(2))
        seconds = card.seconds(partial(torch.matmul, left, right), least_s=0.4)
        found[f"matrix_tflops_{str(kind).removeprefix('torch.')}"] = 2 * _WIDTH**3 / seconds / 1e12
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = card.seconds(lambda: target.copy_(source), least_s=0.3)
    found["memory_tb_per_s"] = 2 * _COPIED_BYTES / seconds / 1e12
    here = torch.empty(_ANSWER_BYTES, dtype=torch.uint8, pin_memory=True)
    answer = source[:_ANSWER_BYTES]
    copy_s = card.seconds(lambda: here.copy_(answer, non_blocking=True), least_s=0.2)
    found["answer_copied_us"] = copy_s * 1e6
    return found


def broken(card: Card) -> dict[str, Any]:
    """Break the device with an id outside the vocabulary; the encoder has to say that it is broken, each time."""
    if card.is_dry:
        return {"found": "needs a GPU"}
    done = subprocess.run(
        [sys.executable, "-c", _BREAK], capture_output=True, text=True, timeout=90, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    say(*found or [done.stderr[-800:]])
    is_right = found == ["FOUND EncoderBrokenError"] * 2
    return {"found": found, "wrong": "" if is_right else "it does not say that it is broken"}
