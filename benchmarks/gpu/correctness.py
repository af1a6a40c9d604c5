"""Whether the vectors of a GPU in half precision are those of a CPU in float32: packed, padded, and under pressure."""

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.gpu.card import Card, Distance, distance, random_inputs, say, torch_engine
from benchmarks.random_models import build
from serve_app.checkpoints.metadata import Checkpoint, read_checkpoint
from serve_app.encoder import Encoder
from serve_app.encoder.torch import TorchEngine
from serve_app.messages import Vectors
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.models import TEXTS, reference_of
from tests.support.tiny_models import MODELS

# Largest distance, as a part of a vector's length, that rounding explains.
TOLERANCES = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.06}
PROMPTS = (None, "query", "passage")
_POOL = 64
_BACK_TO_BACK_S = 8.0


def tiny_models(card: Card) -> dict[str, Any]:
    """Compare every kind of tiny model, with each prompt, with sentence-transformers in float32 on the CPU."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            (Path(folder) / name).mkdir()
            directory = make(Path(folder) / name)
            for dtype in card.precisions:
                found[f"{name} {dtype}"] = _worst_of_prompts(card, directory, dtype)
                say(f"{name} {dtype}: {found[f'{name} {dtype}']}")
    return found | {"wrong": _wrong(found)}


def _worst_of_prompts(card: Card, directory: Path, dtype: str) -> dict[str, Any]:
    """Compare with each prompt, since the trial at the start of a replica uses none."""
    reference, checkpoint = reference_of(directory), read_checkpoint(str(directory))
    encoder, tokenizer = card.load(directory, dtype), Tokenizer(checkpoint)
    worst: Distance | None = None
    failures = 0
    for prompt in PROMPTS:
        ids = tokenizer.encode_texts(
            TEXTS, prompt_name=prompt, truncate=True, truncate_direction="right"
        )
        encoded = encoder.encode([ids.inputs])
        expected = reference.encode(
            TEXTS, prompt=reference.prompts[prompt] if prompt else "", batch_size=1
        )
        failures += len(encoded.failures)
        one = distance(encoded.vectors, expected)
        worst = one if worst is None or one.relative > worst.relative else worst
    assert worst is not None
    return _verdict(worst, dtype, encoder, failures)


def large_model(card: Card) -> dict[str, Any]:
    """Compare a model of bge-base's size, packed and padded; then batches back to back, and with too little memory."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        # Weights that tell texts apart: with smaller ones all texts have nearly one vector, and a swap shows nowhere.
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
                found[name] = _verdict(one, dtype, encoder, len(encoded.failures))
                say(f"{name}: {found[name]}")
        encoder = card.load(directory, warm_up=False)
        found["back to back"] = _back_to_back(card, encoder)
        if not card.is_dry:
            found["little memory"] = _with_little_memory(encoder)
    return found | {"wrong": _wrong(found)}


def _on_cpu(directory: Path, checkpoint: Checkpoint) -> Encoder:
    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    return Encoder(TorchEngine(model, checkpoint), checkpoint)


def _back_to_back(card: Card, encoder: Encoder) -> dict[str, Any]:
    """Encode batches of all sizes without a pause: a buffer that is read too early shows as another input's vector."""
    rng = np.random.default_rng(2)
    pool = [random_inputs([int(n)], seed=int(n)) for n in rng.integers(3, 60, _POOL)]
    alone: Vectors = np.concatenate([encoder.encode([one]).vectors for one in pool])
    worst, batches = 0.0, 0
    ends = time.monotonic() + (1 if card.is_dry else _BACK_TO_BACK_S)
    while time.monotonic() < ends:
        chosen = rng.choice(_POOL, rng.integers(1, _POOL), replace=False)
        budget = int(rng.integers(64, 2000))
        vectors = encoder.encode([pool[i] for i in chosen], max_batch_tokens=budget).vectors
        worst = max(worst, distance(vectors, alone[chosen]).relative)
        batches += 1
    tolerance = TOLERANCES["float32" if card.is_dry else card.dtype]
    found = {"batches": batches, "relative": worst, "is_right": worst <= tolerance}
    say(f"back to back: {found}")
    return found


def _with_little_memory(encoder: Encoder) -> dict[str, Any]:
    """Encode a batch that does not fit what is left of the memory: passes are halved until they fit."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    # 131,072 tokens need 0.8 GB in one place in the feed-forward of this size.
    inputs, budget = random_inputs([128] * 1024), 131_072
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 0.6e9) / total)
    encoded = encoder.encode([inputs], max_batch_tokens=budget)
    torch.cuda.set_per_process_memory_fraction(1.0)
    again = encoder.encode([inputs], max_batch_tokens=budget)
    failures = len(encoded.failures) + len(again.failures)
    relative = distance(encoded.vectors, again.vectors).relative
    found = {
        "failures": failures,
        "relative": relative,
        "is_right": not failures and relative < 0.01,
    }
    say(f"little memory: {found}")
    return found


def _verdict(found: Distance, dtype: str, encoder: Encoder, failures: int) -> dict[str, Any]:
    is_right = found.relative <= TOLERANCES[dtype] and found.is_own and not failures
    pads = torch_engine(encoder).pads
    return asdict(found) | {"failures": failures, "pads": pads, "is_right": is_right}


def _wrong(found: dict[str, Any]) -> str:
    return ", ".join(_names_of_wrong(found.items()))


def _names_of_wrong(found: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for name, one in found:
        if not one["is_right"]:
            yield name
