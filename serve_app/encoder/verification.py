"""What is asked of an engine before it serves: the vectors that another way of computing gave, and a warm-up."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.nn.attention.varlen import varlen_attn

from serve_app.checkpoints.metadata import Checkpoint
from serve_app.encoder.encoder import Encoder
from serve_app.encoder.model_check import PROBES
from serve_app.encoder.torch import TorchEngine
from serve_app.encoder.varlen import Attention, CannotPackError
from serve_app.errors import ModelLoadError
from serve_app.messages import TokenizedInputs
from serve_app.tokenization.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve.embeddings")

# How far a converted model's vectors may be from torch's, as a part of their length. Wide of what rounding does and
# narrow of what a wrong graph does: that is all that is asked here.
TOLERANCES = {"f32": 1e-3, "f16": 0.1, "bf16": 0.1}
_ENDLESS_TOKENS = 512  # of a long input, where an input has no limit


def probes(tokenizer: Tokenizer, max_batch_tokens: int) -> list[TokenizedInputs]:
    """Return inputs of all kinds and one as long as inputs may be, to compare vectors by."""
    texts = _texts(tokenizer)
    return [texts, _repeated(texts, length=_longest(tokenizer, max_batch_tokens), count=1)]


def agree(found: Any, expected: Any, tolerance: float) -> bool:
    """Tell whether no vector is further from the one expected than a part of its length."""
    distances = np.linalg.norm(found - expected, axis=1)
    return bool((distances <= tolerance * np.linalg.norm(expected, axis=1)).all())


def pack_verified(
    engine: TorchEngine,
    checkpoint: Checkpoint,
    probes: Sequence[TokenizedInputs],
    *,
    attention: Attention = varlen_attn,
) -> None:
    """Have an engine compute no padding from now on.

    Raises:
        CannotPackError: it does not give the vectors that it gives with padding, which it goes on computing.
        EncoderBrokenError: the GPU failed.
    """
    expected = Encoder(engine, checkpoint).encode(probes)
    engine.pack(attention)
    found = Encoder(engine, checkpoint).encode(probes)
    if found.failures or not agree(found.vectors, expected.vectors, TOLERANCES["f16"]):
        engine.unpack()
        raise CannotPackError("its vectors were others without padding")


def warm_up(encoder: Encoder, tokenizer: Tokenizer, max_batch_tokens: int) -> float:
    """Run full token budgets and short inputs, so that the first request finds memory and kernels ready.

    Returns:
        What a forward pass costs beside its tokens, in tokens, as these passes show it.
    """
    probe, longest = _texts(tokenizer), _longest(tokenizer, max_batch_tokens)
    short = _repeated(probe, length=int(probe.lengths[0]), count=1)
    full = _repeated(probe, length=longest, count=max_batch_tokens // longest)
    # The first pass of a kind finds nothing ready; what others do on the machine makes a pass longer, never shorter.
    full_s, short_s = (
        min(_pass_seconds(encoder, inputs, max_batch_tokens) for _ in range(passes))
        for inputs, passes in ((full, 2), (short, 5))
    )
    pass_tokens = max(short_s * full.tokens / full_s - short.tokens, 0.0)
    logger.info("a full pass takes %.4f s, a pass as such %.0f tokens", full_s, pass_tokens)
    return pass_tokens


def _pass_seconds(encoder: Encoder, inputs: TokenizedInputs, max_batch_tokens: int) -> float:
    started = time.perf_counter()
    failures = encoder.encode([inputs], max_batch_tokens=max_batch_tokens).failures
    seconds = time.perf_counter() - started
    if failures:
        raise ModelLoadError(
            f"the model gave {failures[0].code} for an input of {inputs.lengths[0]} tokens in the warm-up"
        )
    return seconds


def _repeated(inputs: TokenizedInputs, *, length: int, count: int) -> TokenizedInputs:
    """Return inputs of one length, made of the ids of others over and over."""
    return TokenizedInputs(np.resize(inputs.ids, count * length), np.full(count, length, np.int32))


def _texts(tokenizer: Tokenizer) -> TokenizedInputs:
    return tokenizer.encode_texts(
        PROBES, prompt_name=None, truncate=True, truncate_direction="right"
    ).inputs


def _longest(tokenizer: Tokenizer, max_batch_tokens: int) -> int:
    return min(tokenizer.max_input_tokens or _ENDLESS_TOKENS, max_batch_tokens)
