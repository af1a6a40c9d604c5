from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import scaled_dot_product_attention
from transformers import ModernBertConfig, ModernBertModel

from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.encoder import Encoder, load_encoder
from serve_app.encoder.torch import TorchEngine
from serve_app.encoder.varlen import CannotPackError
from serve_app.encoder.verification import pack_verified, probes
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.attention import one_by_one
from tests.support.checkpoints import byte_bpe
from tests.support.models import (
    PACKED,
    TEXTS,
    Loaded,
    TinyModels,
    assert_same,
    load,
    reference_of,
)
from tests.support.tiny_models import SIZES, Backbone, build, qwen2, save_backbone

BPE_TOKENS = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}


def modern_bert(directory: Path) -> Path:
    """Save a ModernBERT whose local layers attend to three tokens on each side."""
    torch.manual_seed(5)
    tokenizer = byte_bpe()
    changes = {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=40,
        local_attention=6,
        global_attn_every_n_layers=2,
        cls_token_id=0,
        sep_token_id=0,
        **{**SIZES, **changes},
    )
    return save_backbone(directory, ModernBertModel(config), tokenizer, BPE_TOKENS)


def windowed_qwen2(directory: Path) -> Path:
    """Save a decoder with a sliding window of four tokens."""
    return qwen2(directory, use_sliding_window=True, sliding_window=4, max_window_layers=0)


@pytest.mark.parametrize("backbone", [modern_bert, windowed_qwen2])
def test_a_sliding_window_gives_the_same_vectors(backbone: Backbone, tmp_path: Path) -> None:
    directory = build(tmp_path, backbone, "mean")
    model = load(directory, reference_of(directory), engine=PACKED)

    assert_same(model.embed(TEXTS), model.expect(TEXTS))


def engine_of(model: Loaded) -> TorchEngine:
    """Return a new engine for a model, which the test may change."""
    own = SentenceTransformer(
        str(model.directory), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    return TorchEngine(own, model.checkpoint)


def attend_across_inputs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> Any:
    """Attend to all inputs of the forward pass, ignoring their bounds."""
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


def raise_error(*_: Any, **__: Any) -> Any:
    """Fail like a kernel that does not support the head size."""
    raise RuntimeError("boom")


@pytest.mark.parametrize("attention", [attend_across_inputs, raise_error])
def test_a_model_stays_padded_if_its_vectors_change(
    tiny: TinyModels, attention: Callable[..., Any]
) -> None:
    model = tiny("mean")
    engine = engine_of(model)
    inputs = probes(model.tokenizer, 100)

    with pytest.raises(CannotPackError):
        pack_verified(engine, model.checkpoint, inputs, attention=attention)

    assert engine.pads
    encoded = Encoder(engine, model.checkpoint).encode(inputs)
    np.testing.assert_allclose(
        encoded.vectors, model.encoder.encode(inputs).vectors, rtol=1e-5, atol=1e-5
    )


def test_last_token_pooling_without_the_prompt_stays_padded(tiny: TinyModels) -> None:
    """sentence-transformers pools packed inputs differently if the prompt is the whole input."""
    with pytest.raises(CannotPackError, match="last token"):
        engine_of(tiny("no-prompt-lasttoken")).pack(one_by_one)


def test_a_model_is_packed_if_its_vectors_stay_the_same(tiny: TinyModels) -> None:
    model = tiny("roberta")
    engine = engine_of(model)
    inputs = probes(model.tokenizer, 100)

    pack_verified(engine, model.checkpoint, inputs, attention=one_by_one)

    assert not engine.pads
    encoded = Encoder(engine, model.checkpoint).encode(inputs)
    lengths = np.concatenate([one.lengths for one in inputs])
    assert encoded.padded_tokens.tolist() == lengths.tolist()


def test_a_model_with_custom_code_stays_padded(tiny: TinyModels) -> None:
    model = tiny("mean")
    engine = engine_of(model)
    first: Any = engine.modules[0]
    own_code = type("Own", (type(first.model),), {"__module__": "its.own"})
    first.model.__class__ = own_code

    with pytest.raises(CannotPackError):
        TorchEngine(SentenceTransformer(modules=engine.modules), model.checkpoint).pack(one_by_one)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("backbone", ["mean", "roberta", "causal-mean"])
def test_a_gpu_gives_the_same_vectors_without_padding(tiny: TinyModels, backbone: str) -> None:
    model = tiny(backbone)
    directory = str(model.directory)
    checkpoint = read_checkpoint(directory)
    inputs = Tokenizer(checkpoint).encode_texts(TEXTS, truncate=True)

    encoded = [
        load_encoder(directory, device="cuda", dtype="float16", padding=padding).encode([inputs])
        for padding in ("auto", "always")
    ]

    assert encoded[0].padded_tokens.tolist() == inputs.lengths.tolist()
    np.testing.assert_allclose(encoded[0].vectors, encoded[1].vectors, rtol=0.02, atol=0.02)
