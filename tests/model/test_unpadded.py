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
    """Save a ModernBERT, every other layer of which sees three tokens to each side."""
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
    """Save a decoder that sees no further back than four tokens."""
    return qwen2(directory, use_sliding_window=True, sliding_window=4, max_window_layers=0)


@pytest.mark.parametrize("backbone", [modern_bert, windowed_qwen2])
def test_a_window_is_as_wide_as_with_padding(backbone: Backbone, tmp_path: Path) -> None:
    """Forwards and backwards, or backwards alone."""
    directory = build(tmp_path, backbone, "mean")
    model = load(directory, reference_of(directory), engine=PACKED)

    assert_same(model.embed(TEXTS), model.expect(TEXTS))


def engine_of(model: Loaded) -> TorchEngine:
    """Return an engine of its own for a model."""
    own = SentenceTransformer(
        str(model.directory), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    return TorchEngine(own, model.checkpoint)


def seen_by_all(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> Any:
    """Attend to every input of the pass, as a row without bounds would."""
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


def raising(*_: Any, **__: Any) -> Any:
    """Fail, as a kernel does that does not know this width of heads."""
    raise RuntimeError("boom")


@pytest.mark.parametrize("attention", [seen_by_all, raising])
def test_a_model_whose_vectors_would_be_others_is_padded(
    tiny: TinyModels, attention: Callable[..., Any]
) -> None:
    """It goes on as if nothing had been tried."""
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


def test_a_model_that_pools_the_last_token_without_the_prompt_is_padded(tiny: TinyModels) -> None:
    """sentence-transformers pools a row otherwise where the prompt is all there is."""
    with pytest.raises(CannotPackError, match="last token"):
        engine_of(tiny("no-prompt-lasttoken")).pack(one_by_one)


def test_a_model_whose_vectors_are_the_same_is_not_padded(tiny: TinyModels) -> None:
    """No token is computed that an input does not have."""
    model = tiny("roberta")
    engine = engine_of(model)
    inputs = probes(model.tokenizer, 100)

    pack_verified(engine, model.checkpoint, inputs, attention=one_by_one)

    assert not engine.pads
    encoded = Encoder(engine, model.checkpoint).encode(inputs)
    lengths = np.concatenate([one.lengths for one in inputs])
    assert encoded.padded_tokens.tolist() == lengths.tolist()


def test_a_model_with_code_of_its_own_is_padded(tiny: TinyModels) -> None:
    """Nobody knows what it does with a row."""
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
    """In half precision, by PyTorch's own kernel."""
    model = tiny(backbone)
    directory = str(model.directory)
    checkpoint = read_checkpoint(directory)
    inputs = (
        Tokenizer(checkpoint)
        .encode_texts(TEXTS, prompt_name=None, truncate=True, truncate_direction="right")
        .inputs
    )

    encoded = [
        load_encoder(directory, device="cuda", dtype="float16", padding=padding).encode([inputs])
        for padding in ("auto", "always")
    ]

    assert encoded[0].padded_tokens.tolist() == inputs.lengths.tolist()
    np.testing.assert_allclose(encoded[0].vectors, encoded[1].vectors, rtol=0.02, atol=0.02)
