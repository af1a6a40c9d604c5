"""Loads a model twice for comparison: with this project's engines and with sentence-transformers."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from serve_app.checkpoints.metadata import Checkpoint, read_checkpoint
from serve_app.encoder import Encoder, load_encoder
from serve_app.encoder.torch import TorchEngine
from serve_app.encoder.varlen import CannotPackError
from serve_app.messages import Vectors
from serve_app.tokenization.tokenizer import Tokenizer, TruncateDirection
from tests.support.attention import one_by_one
from tests.support.checkpoints import LONG_TEXT, NASTY_TEXTS

READABLE = ["the quick brown fox", "fox", "a dog and a fox, and then some more"]
TEXTS = [*NASTY_TEXTS, LONG_TEXT, *READABLE]
OPENVINO = pytest.param(
    "openvino",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
    ),
)
PACKED = "packed"
ENGINES = ["torch", PACKED, OPENVINO]
TORCH_ONLY = frozenset({"static", "static-normalize"})
TinyModels = Callable[..., "Loaded"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model loaded by this project, and by sentence-transformers without a trailing Normalize."""

    directory: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    encoder: Encoder
    reference: SentenceTransformer

    def embed(
        self,
        texts: list[str],
        *,
        prompt_name: str | None = None,
        truncate_direction: TruncateDirection = "right",
    ) -> Vectors:
        """Return our vectors of texts; long texts are truncated."""
        inputs = self.tokenizer.encode_texts(
            texts,
            prompt=self.tokenizer.find_prompt(prompt_name),
            truncate=True,
            truncate_direction=truncate_direction,
        )
        encoded = self.encoder.encode([inputs])
        assert encoded.failures == ()
        return encoded.vectors

    def expect(self, texts: list[str], *, prompt_name: str | None = None) -> Vectors:
        """Return sentence-transformers' vectors, with a batch size of 1."""
        # The API adds no prompt unless the request names one, even if the model has a default prompt.
        prompt = self.reference.prompts[prompt_name] if prompt_name else ""
        vectors: Vectors = self.reference.encode(texts, prompt=prompt, batch_size=1)
        return vectors


def reference_of(directory: Path) -> SentenceTransformer:
    """Load a model with sentence-transformers, without a trailing Normalize."""
    reference = SentenceTransformer(
        str(directory), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    while isinstance(reference[-1], Normalize):
        del reference[-1]
    return reference


def load(
    directory: Path, reference: SentenceTransformer, *, engine: str, threads: int = 1
) -> Loaded:
    """Load a model for an engine: `torch`, `packed` or `openvino`."""
    checkpoint = read_checkpoint(str(directory))
    if engine == PACKED:
        encoder = packed(directory, checkpoint)
    else:
        encoder = load_encoder(
            str(directory), device="cpu", engine=engine, threads=threads, warm_up=False
        )
        assert encoder.engine_name == engine
    return Loaded(directory, checkpoint, Tokenizer(checkpoint), encoder, reference)


def packed(directory: Path, checkpoint: Checkpoint) -> Encoder:
    """Load a model in torch without padding, with attention that runs on any device."""
    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    engine = TorchEngine(model, checkpoint)
    try:
        engine.pack(one_by_one)
    except CannotPackError as error:
        pytest.skip(f"inputs are padded: {error}")
    return Encoder(engine, checkpoint)


def assert_same(ours: Vectors, theirs: Vectors) -> None:
    """Compare vectors within the tolerance that the project guarantees."""
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
