"""Verifies a loaded model before it serves requests, and warms it up.

- The model must match the metadata read from its files. The ingress only uses the files: it
  tokenizes texts and describes the model from them. If sentence-transformers read the files
  differently, vectors would be wrong, and nobody would notice.
- An OpenVINO graph, and torch without padding, must reproduce the vectors of torch with padding.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.nn.attention.varlen import varlen_attn

from serve_app.checkpoints.metadata import NO_LIMIT, Checkpoint
from serve_app.encoder.encoder import Encoder
from serve_app.encoder.torch import TorchEngine
from serve_app.encoder.varlen import Attention, CannotPackError
from serve_app.errors import ModelLoadError
from serve_app.messages import TokenizedInputs
from serve_app.tokenization.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve.embeddings")

# Maximum distance from torch's vector, as a fraction of the length of torch's vector. The tolerances
# only need to tell rounding errors (far below them) from a wrong graph (far above them).
TOLERANCES = {"f32": 1e-3, "f16": 0.1, "bf16": 0.1}
_UNLIMITED_TOKENS = 512  # length of the long input for a model without an input limit
# Tokenizers differ in case, accents, scripts without spaces, ligatures, emoji and whitespace.
PROBES = (
    "Hello, World! This is a plain sentence.",
    "ÀÉÎ Ünïcödé naïve e\u0301 İstanbul STRASSE",
    "日本語のテスト 한국어 中文、标点。 ไทย हिन्दी",
    "  two  spaces\tand\nlines \u200b\u00a0 ",
    "don't — “quotes” … 12345.67 ﬁ ① ½ C++ <s> [MASK] https://example.org/a?b=c",
    "🙂 👩\u200d👩\u200d👧 x",
)
KNOWN_FEATURES = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "offsets", "modality", "prompt_length"}
)


def check_model(model: Any, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Compare a loaded model with the metadata and the tokenizer read from its files.

    Args:
        model: the loaded SentenceTransformer.
        checkpoint: the metadata.
        tokenizer: the tokenizer created from `checkpoint`.

    Raises:
        ModelLoadError: the model and its files differ, or the model needs inputs other than token
            ids.
    """
    limit = model.max_seq_length
    limit = None if limit is None or limit >= NO_LIMIT else limit
    facts = (
        ("dimensions", model.get_embedding_dimension(), checkpoint.dimensions),
        (
            "max_seq_length (set it in sentence_bert_config.json)",
            limit,
            checkpoint.max_input_tokens,
        ),
        ("prompts", dict(model.prompts), dict(checkpoint.prompts)),
    )
    for name, loaded, read in facts:
        if loaded != read:
            raise ModelLoadError(
                f"{checkpoint.directory}: {name}: {read} in the files, {loaded} in the loaded model"
            )
    for prompt_name in (None, *checkpoint.prompts):
        for probe in PROBES:
            _check_features(model, checkpoint, tokenizer, probe, prompt_name=prompt_name)


def _check_features(
    model: Any, checkpoint: Checkpoint, tokenizer: Tokenizer, probe: str, *, prompt_name: str | None
) -> None:
    prompt = checkpoint.prompts.get(prompt_name or "")
    features = model.preprocess([probe], prompt=prompt)
    if unknown := set(features) - KNOWN_FEATURES:
        raise ModelLoadError(
            f"{checkpoint.directory}: unsupported input features: {', '.join(sorted(unknown))}"
        )
    if "token_type_ids" in features and features["token_type_ids"].any():
        raise ModelLoadError(
            f"{checkpoint.directory}: unsupported token types: only 0 is supported"
        )
    ids = features["input_ids"]
    if "attention_mask" in features:
        ids = ids[features["attention_mask"].bool()]
    ours = tokenizer.encode_texts([probe], prompt=tokenizer.find_prompt(prompt_name), truncate=True)
    same_prompt = (
        checkpoint.include_prompt or features.get("prompt_length", 0) == ours.prompt_length
    )
    if not (same_prompt and np.array_equal(ids.numpy().ravel(), ours.ids)):
        raise ModelLoadError(
            f"{checkpoint.directory}: tokenizer.json and sentence-transformers produce different token ids; save the "
            "model again with `SentenceTransformer(directory).save(other_directory)` and serve the copy"
        )


def probes(tokenizer: Tokenizer, max_batch_tokens: int) -> list[TokenizedInputs]:
    """Return inputs for comparing vectors: varied short texts, and one of maximum length."""
    texts = _texts(tokenizer)
    return [texts, _repeated(texts, length=_longest(tokenizer, max_batch_tokens), count=1)]


def agree(actual: Any, expected: Any, tolerance: float) -> bool:
    """Return whether all vectors are within a relative distance of the expected ones.

    Args:
        actual: float32 [inputs, dimensions].
        expected: float32 [inputs, dimensions].
        tolerance: maximum distance, as a fraction of the expected vector's length.
    """
    distances = np.linalg.norm(actual - expected, axis=1)
    return bool((distances <= tolerance * np.linalg.norm(expected, axis=1)).all())


def pack_verified(
    engine: TorchEngine,
    checkpoint: Checkpoint,
    probes: Sequence[TokenizedInputs],
    *,
    attention: Attention = varlen_attn,
) -> None:
    """Make an engine run without padding, and check that its vectors stay the same.

    Raises:
        CannotPackError: the model needs padded inputs, or the vectors differ. If the vectors differ,
            the engine pads inputs again.
        EncoderBrokenError: the GPU failed.
    """
    expected = Encoder(engine, checkpoint).encode(probes)
    engine.pack(attention)
    actual = Encoder(engine, checkpoint).encode(probes)
    if actual.failures or not agree(actual.vectors, expected.vectors, TOLERANCES["f16"]):
        engine.unpack()
        raise CannotPackError("the model's vectors differ without padding")


def warm_up(encoder: Encoder, tokenizer: Tokenizer, max_batch_tokens: int) -> float:
    """Run full token budgets and short inputs, to allocate memory and load kernels.

    Returns:
        The measured fixed cost of a forward pass, as the number of tokens that take the same time.

    Raises:
        ModelLoadError: an input failed.
    """
    probe, longest = _texts(tokenizer), _longest(tokenizer, max_batch_tokens)
    short = _repeated(probe, length=int(probe.lengths[0]), count=1)
    full = _repeated(probe, length=longest, count=max_batch_tokens // longest)
    # Take the minimum: the first forward pass of a shape is slower, and other load only adds time.
    full_s = min(_forward_seconds(encoder, full, max_batch_tokens) for _ in range(2))
    short_s = min(_forward_seconds(encoder, short, max_batch_tokens) for _ in range(5))
    pass_tokens = max(short_s * full.tokens / full_s - short.tokens, 0.0)
    logger.info(
        "warm-up: a full forward pass takes %.4f s; the fixed cost of a forward pass equals %.0f tokens",
        full_s,
        pass_tokens,
    )
    return pass_tokens


def _forward_seconds(encoder: Encoder, inputs: TokenizedInputs, max_batch_tokens: int) -> float:
    started = time.perf_counter()
    failures = encoder.encode([inputs], max_batch_tokens=max_batch_tokens).failures
    seconds = time.perf_counter() - started
    if failures:
        raise ModelLoadError(
            f"warm-up failed: {failures[0].code} for an input of {inputs.lengths[0]} tokens"
        )
    return seconds


def _repeated(inputs: TokenizedInputs, *, length: int, count: int) -> TokenizedInputs:
    """Return `count` inputs of `length` tokens that repeat the ids of the given inputs."""
    return TokenizedInputs(np.resize(inputs.ids, count * length), np.full(count, length, np.int32))


def _texts(tokenizer: Tokenizer) -> TokenizedInputs:
    return tokenizer.encode_texts(PROBES, truncate=True)


def _longest(tokenizer: Tokenizer, max_batch_tokens: int) -> int:
    return min(tokenizer.max_input_tokens or _UNLIMITED_TOKENS, max_batch_tokens)
