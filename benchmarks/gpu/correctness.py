"""Compare the GPU's half-precision vectors with float32 on a CPU: packed, padded and under pressure."""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.gpu.card import Card, Distance, distance, print_status, random_inputs, torch_engine
from benchmarks.random_models import build
from serve_app.checkpoints.metadata import Checkpoint, read_checkpoint
from serve_app.encoder import Encoder
from serve_app.encoder.torch import TorchEngine
from serve_app.messages import Vectors
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.models import TEXTS, reference_of
from tests.support.tiny_models import MODELS

# Maximum relative distance that rounding errors explain, by dtype.
TOLERANCES = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.06}
PROMPTS = (None, "query", "passage")
_POOL = 64
_BACK_TO_BACK_S = 8.0


def tiny_models(card: Card) -> dict[str, Any]:
    """Compare every kind of tiny model, with each prompt, with sentence-transformers in float32 on the CPU."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            (Path(folder) / name).mkdir()
            directory = make(Path(folder) / name)
            for dtype in card.precisions:
                result = _worst_of_prompts(card, directory, dtype)
                results[f"{name} {dtype}"] = result
                print_status(f"{name} {dtype}: {result}")
    return results | {"wrong": _wrong(results)}


def _worst_of_prompts(card: Card, directory: Path, dtype: str) -> dict[str, Any]:
    """Compare with each prompt, because the verification at a replica's start uses none."""
    reference, checkpoint = reference_of(directory), read_checkpoint(str(directory))
    encoder, tokenizer = card.load(directory, dtype), Tokenizer(checkpoint)
    worst: Distance | None = None
    failures = 0
    for prompt in PROMPTS:
        ids = tokenizer.encode_texts(TEXTS, prompt=tokenizer.find_prompt(prompt), truncate=True)
        encoded = encoder.encode([ids])
        expected = reference.encode(
            TEXTS, prompt=reference.prompts[prompt] if prompt else "", batch_size=1
        )
        failures += len(encoded.failures)
        one = distance(encoded.vectors, expected)
        worst = one if worst is None or one.relative > worst.relative else worst
    assert worst is not None
    return _verdict(worst, dtype, encoder, failures)


def large_model(card: Card) -> dict[str, Any]:
    """Check a model of bge-base's size: packed and padded, with batches back to back, and with too little memory."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        # With smaller weights, all texts get nearly the same vector, and swapped vectors would go unnoticed.
        directory = build(card.size("base"), Path(folder), spread=0.1, pooling="mean")
        longest = 64 if card.is_dry else 512
        some = np.random.default_rng(1).integers(4, 60 if card.is_dry else 200, 25)
        inputs = random_inputs(np.concatenate([[1, 2, 3, longest, longest - 1, 33, 17], some]))
        checkpoint = read_checkpoint(str(directory))
        expected = _on_cpu(directory, checkpoint).encode([inputs]).vectors
        for dtype in card.precisions:
            for padding in ("auto", "always"):
                encoder = card.load(directory, dtype, padding=padding, warm_up=False)
                encoded = encoder.encode([inputs])
                one = distance(encoded.vectors, expected)
                name = f"{dtype}, padding {padding}"
                results[name] = _verdict(one, dtype, encoder, len(encoded.failures))
                print_status(f"{name}: {results[name]}")
        encoder = card.load(directory, warm_up=False)
        results["back to back"] = _back_to_back(card, encoder)
        if not card.is_dry:
            results["little memory"] = _with_little_memory(encoder)
    return results | {"wrong": _wrong(results)}


def _on_cpu(directory: Path, checkpoint: Checkpoint) -> Encoder:
    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    return Encoder(TorchEngine(model, checkpoint), checkpoint)


def _back_to_back(card: Card, encoder: Encoder) -> dict[str, Any]:
    """Encode batches of all sizes without a pause.

    If a buffer is read too early, an input gets another input's vector.
    """
    rng = np.random.default_rng(2)
    pool = [random_inputs([int(n)], seed=int(n)) for n in rng.integers(3, 60, _POOL)]
    alone: Vectors = np.concatenate([encoder.encode([one]).vectors for one in pool])
    worst, batches = 0.0, 0
    ends = time.monotonic() + (1 if card.is_dry else _BACK_TO_BACK_S)
    while time.monotonic() < ends:
        sample = rng.choice(_POOL, rng.integers(1, _POOL), replace=False)
        budget = int(rng.integers(64, 2000))
        vectors = encoder.encode([pool[i] for i in sample], max_batch_tokens=budget).vectors
        worst = max(worst, distance(vectors, alone[sample]).relative)
        batches += 1
    tolerance = TOLERANCES["float32" if card.is_dry else card.dtype]
    result = {"batches": batches, "relative": worst, "is_right": worst <= tolerance}
    print_status(f"back to back: {result}")
    return result


def _with_little_memory(encoder: Encoder) -> dict[str, Any]:
    """Encode a batch that does not fit into memory, so the encoder halves its micro-batches until they fit."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    # For 131,072 tokens, one buffer in this model's feed-forward block needs 0.8 GB.
    inputs, budget = random_inputs([128] * 1024), 131_072
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 0.6e9) / total)
    encoded = encoder.encode([inputs], max_batch_tokens=budget)
    torch.cuda.set_per_process_memory_fraction(1.0)
    again = encoder.encode([inputs], max_batch_tokens=budget)
    failures = len(encoded.failures) + len(again.failures)
    relative = distance(encoded.vectors, again.vectors).relative
    result = {
        "failures": failures,
        "relative": relative,
        "is_right": not failures and relative < 0.01,
    }
    print_status(f"little memory: {result}")
    return result


def _verdict(measured: Distance, dtype: str, encoder: Encoder, failures: int) -> dict[str, Any]:
    is_right = measured.relative <= TOLERANCES[dtype] and measured.is_own and not failures
    pads = torch_engine(encoder).pads
    return asdict(measured) | {"failures": failures, "pads": pads, "is_right": is_right}


def _wrong(results: dict[str, Any]) -> str:
    return ", ".join(name for name, result in results.items() if not result["is_right"])
