"""Tiny random models, saved by sentence-transformers: one for each feature that affects vectors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests.support.checkpoints import (
    byte_bpe,
    letters,
    unigram,
    wordpiece,
    write_json,
    write_modules,
)

WIDTH = 32
MAX_SEQ_LENGTH = 24
PROMPTS = {"query": "query: ", "passage": "represent this passage: "}
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    # Large, so that a wrong token or position changes vectors by far more than the tolerance.
    "initializer_range": 0.3,
}
BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "cls": "<s>",
    "unk": "<unk>",
    "pad": "<pad>",
    "mask": "<mask>",
}


def save_backbone(
    directory: Path, model: Any, tokenizer: Tokenizer, tokens: dict[str, str], **settings: Any
) -> Path:
    """Save a transformer with its tokenizer, in the layout of a Hub repository."""
    model.save_pretrained(directory)
    named = {f"{name}_token": token for name, token in tokens.items()}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_SEQ_LENGTH, **named, **settings
    )
    fast.save_pretrained(directory)
    return directory


def bert(directory: Path, *, lowercase: bool = True, **changes: Any) -> Path:
    """Save a BERT, cased or uncased."""
    torch.manual_seed(1)
    tokenizer = wordpiece(lowercase=lowercase)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, **{**SIZES, **changes}
    )
    save_backbone(directory, BertModel(config), tokenizer, BERT_TOKENS)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lowercase,
            "model_max_length": MAX_SEQ_LENGTH,
            **{f"{name}_token": token for name, token in BERT_TOKENS.items()},
        },
    )
    return directory


def roberta(directory: Path) -> Path:
    """Save a RoBERTa, whose positions start after the padding id."""
    torch.manual_seed(2)
    tokenizer = byte_bpe(roberta=True)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, pad_token_id=1, **SIZES
    )
    return save_backbone(directory, RobertaModel(config), tokenizer, ROBERTA_TOKENS)


def xlm_roberta(directory: Path) -> Path:
    """Save an XLM-RoBERTa, whose tokenizer is a SentencePiece unigram model."""
    torch.manual_seed(3)
    tokenizer = unigram()
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, pad_token_id=1, **SIZES
    )
    return save_backbone(directory, XLMRobertaModel(config), tokenizer, ROBERTA_TOKENS)


def qwen2(directory: Path, **changes: Any) -> Path:
    """Save a causal decoder whose tokenizer pads on the left."""
    torch.manual_seed(4)
    tokenizer = byte_bpe()
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=40,
        num_key_value_heads=2,
        **{**SIZES, **changes},
    )
    tokens = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    return save_backbone(directory, Qwen2Model(config), tokenizer, tokens, padding_side="left")


Backbone = Callable[[Path], Path]


def build(
    directory: Path,
    backbone: Backbone,
    pooling: str | Sequence[str],
    *later: Any,
    include_prompt: bool = True,
    prompts: dict[str, str] | None = None,
    transformer: dict[str, Any] | None = None,
) -> Path:
    """Save a SentenceTransformer of a backbone, a pooling and later modules."""
    first = Transformer(str(backbone(directory / "backbone")), **(transformer or {}))
    modes = pooling if isinstance(pooling, str) else tuple(pooling)
    modules = [first, Pooling(WIDTH, modes, include_prompt=include_prompt), *later]
    model = SentenceTransformer(modules=modules, prompts=PROMPTS if prompts is None else prompts)
    model.save(str(directory / "model"))
    return directory / "model"


def static(directory: Path, *later: Any) -> Path:
    """Save a StaticEmbedding whose tokenizer drops unknown characters."""
    torch.manual_seed(5)
    modules = [StaticEmbedding(letters(), embedding_dim=WIDTH), *later]
    model = SentenceTransformer(modules=modules, prompts=PROMPTS)
    model.save(str(directory / "model"))
    return directory / "model"


def dense() -> Dense:
    """Return a Dense module that reduces the dimensions."""
    torch.manual_seed(6)
    return Dense(WIDTH, 12)


def default_prompt(directory: Path) -> Path:
    """Save a model with a default prompt and truncated vectors."""
    torch.manual_seed(1)
    modules = [Transformer(str(bert(directory / "backbone"))), Pooling(WIDTH, "mean")]
    model = SentenceTransformer(
        modules=modules, prompts=PROMPTS, default_prompt_name="passage", truncate_dim=20
    )
    model.save(str(directory / "model"))
    return directory / "model"


def cased(directory: Path) -> Path:
    """Save a cased BERT."""
    return bert(directory, lowercase=False)


def old_format(directory: Path) -> Path:
    """Save a model in the format of sentence-transformers 2, with its `do_lower_case` setting."""
    model = build(directory, cased, "mean", Normalize())
    names = ("Transformer", "Pooling", "Normalize")
    write_modules(model, *(f"sentence_transformers.models.{name}" for name in names))
    write_json(model / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True})
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    write_json(model / "1_Pooling" / "config.json", {**pooling, "pooling_mode_cls_token": False})
    return model


MODELS: dict[str, Callable[[Path], Path]] = {
    "mean": lambda d: build(d, bert, "mean"),
    "mean-normalize": lambda d: build(d, bert, "mean", Normalize()),
    "cls-normalize": lambda d: build(d, bert, "cls", Normalize()),
    "max": lambda d: build(d, bert, "max"),
    "mean-sqrt": lambda d: build(d, bert, "mean_sqrt_len_tokens"),
    "weightedmean": lambda d: build(d, bert, "weightedmean"),
    "mean-and-max": lambda d: build(d, bert, ("mean", "max")),
    "dense": lambda d: build(d, bert, "mean", dense()),
    "dense-normalize": lambda d: build(d, bert, "mean", dense(), Normalize()),
    "normalize-dense": lambda d: build(d, bert, "mean", Normalize(), dense()),
    "layer-norm": lambda d: build(d, bert, "mean", LayerNorm(WIDTH)),
    "no-prompt-mean": lambda d: build(d, bert, "mean", include_prompt=False),
    "no-prompt-cls": lambda d: build(d, bert, "cls", include_prompt=False),
    "no-prompt-weightedmean": lambda d: build(d, roberta, "weightedmean", include_prompt=False),
    "no-prompt-lasttoken": lambda d: build(d, qwen2, "lasttoken", include_prompt=False),
    "lasttoken": lambda d: build(d, qwen2, "lasttoken", Normalize()),
    "causal-mean": lambda d: build(d, qwen2, "mean"),
    "cased": lambda d: build(d, cased, "mean"),
    "old-format": old_format,
    "roberta": lambda d: build(d, roberta, "mean"),
    "xlm-roberta": lambda d: build(d, xlm_roberta, "cls", Normalize()),
    "max-seq-length": lambda d: build(d, bert, "mean", transformer={"max_seq_length": 11}),
    "default-prompt": default_prompt,
    "static": static,
    "static-normalize": lambda d: static(d, Normalize()),
}
