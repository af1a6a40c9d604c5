"""Write small model directories: tokenizers trained on a few lines, and JSON files.

This module does not import torch.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = (
    "the quick brown fox jumps over the lazy dog, and then it sleeps for a while in the sun.",
    "query: what is a good question? passage: a good answer is short; 12345 words are too many!",
    "naïve café déjà-vu Ünïcödé straße İstanbul ÀÉÎ resume",
    "日本語のテスト 中文测试 한국어 ไทย हिन्दी עברית русский язык",
    "represent this sentence for searching relevant passages: clustering classification retrieval",
)
# Texts that tokenizers treat differently: scripts, case, accents, emoji, spaces, literal special tokens.
NASTY_TEXTS = (
    "a",
    "The QUICK brown Fox",
    "  two  spaces\tand\nlines\u00a0\u200b ",
    "ÀÉÎ naïve e\u0301 Straße İstanbul",
    "日本語 中文。한국어 ไทย हिन्दी עברית",
    "🙂👩\u200d👩\u200d👧 \ufffd \u0000 \u202e x",
    "[MASK] <s> </s> [SEP] <|endoftext|> [PAD]",
    "don't — “quotes” … 12345.67 ﬁ ① C++",
    "supercalifragilisticexpialidocious" * 3,
)
LONG_TEXT = "the quick brown fox, " * 40 + "and then the end of it"


def wordpiece(*, lowercase: bool = True) -> Tokenizer:
    """Return a tokenizer like BERT's: [CLS] text [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def byte_bpe(*, roberta: bool = False) -> Tokenizer:
    """Return a byte-level BPE: <s> text </s> as in RoBERTa, or text and one end token as in decoder models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta else ["<|endoftext|>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=450,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if roberta:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A:0 <|endoftext|>:0",
            pair="$A:0 $B:1 <|endoftext|>:1",
            special_tokens=[("<|endoftext|>", 0)],
        )
    return tokenizer


def unigram() -> Tokenizer:
    """Return a tokenizer like XLM-RoBERTa's: SentencePiece unigrams, <s> text </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def letters() -> Tokenizer:
    """Return a tokenizer that drops unknown characters and adds no special tokens, as a StaticEmbedding may."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        CORPUS[:1], trainers.BpeTrainer(vocab_size=60, show_progress=False)
    )
    return tokenizer


def write_json(path: Path, value: Any) -> None:
    """Write JSON, and create the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_modules(directory: Path, *types: str) -> None:
    """Write `modules.json`. The first module is in the directory itself, each other one in its own folder."""
    write_json(
        directory / "modules.json",
        [
            {
                "idx": n,
                "name": str(n),
                "path": f"{n}_{kind.rpartition('.')[2]}" if n else "",
                "type": kind,
            }
            for n, kind in enumerate(types)
        ],
    )


def write_bert(
    directory: Path,
    *,
    tokenizer: Tokenizer | None = None,
    max_seq_length: int | None = 32,
    prompts: dict[str, str] | None = None,
    include_prompt: bool = True,
) -> Path:
    """Write the config and tokenizer of a mean-pooled BERT, in the format of sentence-transformers 2."""
    write_modules(
        directory,
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
    )
    write_json(
        directory / "config.json",
        {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "hidden_size": 24,
            "max_position_embeddings": 64,
        },
    )
    write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": max_seq_length, "do_lower_case": False},
    )
    write_json(
        directory / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": 24,
            "pooling_mode_mean_tokens": True,
            "include_prompt": include_prompt,
        },
    )
    write_json(directory / "config_sentence_transformers.json", {"prompts": prompts or {}})
    (tokenizer or wordpiece()).save(str(directory / "tokenizer.json"))
    return directory
