"""Models that do not embed, saved by their own classes, are recognized from their files alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import CrossEncoder, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.encoder import load_encoder
from serve_app.errors import ModelLoadError
from tests.support.checkpoints import byte_bpe, wordpiece
from tests.support.tiny_models import BERT_TOKENS, SIZES, save_backbone


def bert_with_head(directory: Path, head: Any) -> Path:
    """Save a BERT with a task head, or without one."""
    tokenizer = wordpiece()
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), num_labels=1, **SIZES)
    return save_backbone(directory, head(config), tokenizer, BERT_TOKENS)


def language_model(directory: Path) -> Path:
    """Save a causal language model."""
    tokenizer = byte_bpe()
    config = Qwen2Config(vocab_size=tokenizer.get_vocab_size(), num_key_value_heads=2, **SIZES)
    tokens = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    return save_backbone(directory, Qwen2ForCausalLM(config), tokenizer, tokens)


def cross_encoder(directory: Path) -> Path:
    """Save a reranker with sentence-transformers."""
    backbone = bert_with_head(directory / "backbone", BertForSequenceClassification)
    CrossEncoder(str(backbone), device="cpu").save(str(directory / "model"))
    return directory / "model"


def sparse_encoder(directory: Path) -> Path:
    """Save a SPLADE model with sentence-transformers."""
    backbone = bert_with_head(directory / "backbone", BertForMaskedLM)
    modules = [Transformer(str(backbone), transformer_task="fill-mask"), SpladePooling()]
    SparseEncoder(modules=modules, device="cpu").save(str(directory / "model"))
    return directory / "model"


OTHERS: dict[str, Callable[[Path], Path]] = {
    "BertForSequenceClassification": lambda d: bert_with_head(d, BertForSequenceClassification),
    "BertForMaskedLM": lambda d: bert_with_head(d, BertForMaskedLM),
    "BertModel": lambda d: bert_with_head(d, BertModel),
    "Qwen2ForCausalLM": language_model,
    "CrossEncoder": cross_encoder,
    "SparseEncoder": sparse_encoder,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_of_another_kind_does_not_embed(tmp_path: Path, kind: str) -> None:
    directory = OTHERS[kind](tmp_path)

    checkpoint = read_checkpoint(str(directory))

    assert not checkpoint.embeds
    assert kind in checkpoint.reason
    with pytest.raises(ModelLoadError, match=kind):
        load_encoder(str(directory))
