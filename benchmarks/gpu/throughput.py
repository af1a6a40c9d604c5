"""Compare the encoder's speed with the bare forward pass of the same model, and profile what a batch waits for."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.encoder import padded
from benchmarks.gpu.card import Card, print_status, random_inputs, torch_engine
from benchmarks.random_models import build
from benchmarks.workloads import log_normal
from serve_app.encoder import Encoder
from serve_app.encoder.engine import Features

# Parts of the names that the profiler gives to waits and allocations. A batch should wait once and not allocate.
_WAITS = ("Synchronize", "_local_scalar_dense", "is_nonzero", "cudaMalloc", "cudaHostAlloc")
_PROFILED = (("base", "1024 x 32"), ("minilm", "1024 x 32"), ("base", "64 x 12"))
_BATCHES = 4


def cases(card: Card) -> dict[str, list[int]]:
    """Return the batches by name, each as the token lengths of its inputs."""
    generator = random.Random(20)
    mixed: list[int] = []
    while sum(mixed) < card.budget - 256:
        mixed.append(log_normal(generator))
    if card.is_dry:
        return {"1 x 12": [12], "32 x 8": [8] * 32, "mixed": mixed[:20]}
    return {
        "1 x 12": [12],
        "64 x 12": [12] * 64,
        "32 x 32": [32] * 32,
        "1024 x 32": [32] * 1024,
        "mixed": mixed,
        "64 x 512": [512] * 64,
    }


def table(card: Card) -> dict[str, Any]:
    """Measure each model with each batch: the bare forward pass, padded and packed, and the encoder."""
    rows: list[dict[str, Any]] = []
    for name in card.sizes:
        if card.left_s < 100 and not card.is_dry:
            return {"rows": rows, "wrong": f"no time was left for {name}"}
        with tempfile.TemporaryDirectory() as folder:
            encoder = card.load(build(card.size(name), Path(folder)))
            print_status(
                f"{name}: pads {torch_engine(encoder).pads}, "
                f"overhead of a forward pass: {encoder.pass_tokens:.0f} tokens"
            )
            for case, lengths in cases(card).items():
                rows += _measure(card, encoder, name, case, lengths)
            del encoder
        card.free_memory()
    return {"rows": rows}


def _measure(
    card: Card, encoder: Encoder, name: str, case: str, lengths: Sequence[int]
) -> list[dict[str, Any]]:
    durations: dict[str, float] = {}
    if not torch_engine(encoder).pads:
        durations["bare forward, packed"] = card.seconds(_packed_forward(card, encoder, lengths))
    with _padded_attention(encoder):
        durations["bare forward, padded"] = card.seconds(_padded_forward(card, encoder, lengths))
    best = min(durations.values())
    batches = [random_inputs(lengths, seed=seed) for seed in range(_BATCHES)]
    calls = 0

    def encode() -> None:
        nonlocal calls
        encoded = encoder.encode([batches[calls % _BATCHES]], max_batch_tokens=card.budget)
        assert not encoded.failures
        calls += 1

    durations["encoder"] = card.seconds(encode)
    rows = []
    for way, seconds in durations.items():
        row = {
            "size": name,
            "case": case,
            "way": way,
            "ms": 1000 * seconds,
            "texts_per_s": len(lengths) / seconds,
            "tflops": card.size(name).flops(list(lengths)) / seconds / 1e12,
            "of_bare": best / seconds,
        }
        print_status(
            f"| {name:6} | {case:9} | {way:20} | {row['ms']:8.2f} ms | {row['texts_per_s']:9.0f} texts/s "
            f"| {row['tflops']:6.1f} TFLOP/s | {row['of_bare']:5.2f} of bare |"
        )
        rows.append(row)
    return rows


def _packed_forward(card: Card, encoder: Encoder, lengths: Sequence[int]) -> Callable[[], None]:
    """Return the forward pass on one packed batch that is already on the device."""
    engine = torch_engine(encoder)
    assert engine._packed is not None
    inputs = random_inputs(lengths)
    features = Features(inputs.ids.astype(np.int64), inputs.lengths.astype(np.int64), 0)
    tensors = dict(
        engine._packed.tensors(features, lambda array: torch.from_numpy(array).to(card.device))
    )
    if engine.reads_token_types:
        tensors["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
    model = engine.modules[0].model

    def run() -> None:
        with torch.inference_mode():
            model(**tensors)

    return run


def _padded_forward(card: Card, encoder: Encoder, lengths: Sequence[int]) -> Callable[[], None]:
    """Return the forward pass on padded batches of similar length."""
    model = torch_engine(encoder).modules[0].model
    inputs = random_inputs(lengths)
    rows = sorted(np.split(inputs.ids, np.cumsum(inputs.lengths)[:-1]), key=len)
    step = len(rows) if len(set(lengths)) == 1 else max(len(rows) // 4, 1)
    batches = [
        padded(rows[start : start + step], card.device) for start in range(0, len(rows), step)
    ]

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch)

    return run


@contextmanager
def _padded_attention(encoder: Encoder) -> Iterator[None]:
    """Use torch's own attention until the block ends, then restore the attention for packed inputs."""
    model = torch_engine(encoder).modules[0].model
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def profile(card: Card) -> dict[str, Any]:
    """Profile some batches.

    Writes a trace of each, and returns the device's busy fraction and the waits and allocations per batch.
    """
    results: dict[str, Any] = {}
    activities = [ProfilerActivity.CPU]
    if not card.is_dry:
        activities.append(ProfilerActivity.CUDA)
    for name, full_case in _PROFILED:
        case = "mixed" if card.is_dry else full_case
        with tempfile.TemporaryDirectory() as folder:
            encoder = card.load(build(card.size(name), Path(folder)))
            inputs = random_inputs(cases(card)[case])
            for _ in range(3):
                encoder.encode([inputs])
            with profiler(activities=activities) as profiled:
                start = time.perf_counter()
                for _ in range(_BATCHES):
                    encoder.encode([inputs])
                card.synchronize()
                wall_s = time.perf_counter() - start
        events = profiled.key_averages()
        busy_s = sum(getattr(event, "self_device_time_total", 0) for event in events) / 1e6
        results[f"{name} {case}"] = {
            "batch_ms": wall_s / _BATCHES * 1000,
            "device_busy": busy_s / wall_s,
            "waits": {
                event.key: event.count / _BATCHES
                for event in events
                if any(word in event.key for word in _WAITS)
            },
        }
        print_status(f"{name} {case}: {results[f'{name} {case}']}")
        trace = f"trace-{name}-{case.replace(' ', '')}.json.gz"
        profiled.export_chrome_trace(str(card.out / trace))
    return results
