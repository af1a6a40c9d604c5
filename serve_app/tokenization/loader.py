"""Loads a model's `tokenizer.json` and configures it as sentence-transformers does.

transformers modifies some tokenizers when it loads them. This module makes the same changes for embedding models, but
does not import transformers. When a replica loads a model, the encoder verifies that this module's tokenizer and
transformers produce the same ids. This is the only module that imports the `tokenizers` library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer, Lowercase, Normalizer
from tokenizers.normalizers import Sequence as NormalizerSequence

from serve_app.checkpoints.metadata import Checkpoint
from serve_app.errors import ModelLoadError

# These tokenizer classes of transformers use `tokenizer.json` unchanged. All other classes rebuild BERT's normalizer
# from `tokenizer_config.json`.
PLAIN_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Letters of several scripts, a digit, a punctuation mark and spaces. The vocabulary of any language has a token for at
# least one of these characters.
PROBE = "a 1 . e A é 字 я"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A loaded tokenizer. It is not modified after loading.

    Attributes:
        tokenizer: the tokenizer, without truncation or padding.
        prefix: the ids of the special tokens before a text.
        suffix: the ids of the special tokens after a text.
        special_ids: the ids of all special tokens.
        vocabulary_size: the largest id plus one.
    """

    tokenizer: Tokenizer
    prefix: list[int]
    suffix: list[int]
    special_ids: frozenset[int]
    vocabulary_size: int


def load_tokenizer_file(checkpoint: Checkpoint) -> TokenizerFile:
    """Load a model's tokenizer.

    Raises:
        ModelLoadError: `tokenizer.json` is missing or cannot be read.
    """
    directory = checkpoint.tokenizer_directory or checkpoint.directory
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelLoadError(
            f"{directory} has no tokenizer.json. Create it with transformers: "
            "`AutoTokenizer.from_pretrained(directory).save_pretrained(directory)`"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
        config = directory / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except Exception as error:  # the library raises plain `Exception`s
        raise ModelLoadError(f"the tokenizer in {directory} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prefix: list[int] = []
    suffix: list[int] = []
    # StaticEmbedding adds no special tokens and reads tokenizer.json without transformers.
    if checkpoint.adds_special_tokens:
        _rebuild_bert_normalizer(tokenizer, settings)
        prefix, suffix = _affixes(tokenizer)
    if checkpoint.lowercase:
        _prepend_lowercase(tokenizer)
    return TokenizerFile(
        tokenizer,
        prefix,
        suffix,
        _special_ids(tokenizer, settings),
        1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
    )


def _rebuild_bert_normalizer(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Replace BERT's normalizer with one built from `tokenizer_config.json`, as transformers does."""
    is_plain = settings.get("tokenizer_class") in PLAIN_CLASSES
    if not is_plain and any(
        isinstance(step, BertNormalizer) for step in _steps(tokenizer.normalizer)
    ):
        tokenizer.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            lowercase=settings.get("do_lower_case", True),
        )


def _affixes(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens before and after a text."""
    encoding = tokenizer.encode(PROBE)
    text = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
    if not text:
        raise ModelLoadError(
            "tokenizer.json is broken: it has no token for the most common letters"
        )
    return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]


def _prepend_lowercase(tokenizer: Tokenizer) -> None:
    """Lower-case text before any other step, unless a step already does so.

    This corresponds to sentence-transformers' `do_lower_case`.
    """
    steps = _steps(tokenizer.normalizer)
    if not any(isinstance(step, Lowercase) for step in steps):
        tokenizer.normalizer = NormalizerSequence([Lowercase(), *steps])


def _steps(normalizer: Normalizer | None) -> list[Normalizer]:
    steps: list[Normalizer] = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, NormalizerSequence):
        steps = list(normalizer)  # type: ignore[call-overload]  # its stub lacks __getitem__
    return steps


def _special_ids(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder().items()
    named = (settings.get(name) for name in NAMED_TOKENS)
    contents = (token["content"] if isinstance(token, dict) else token for token in named if token)
    ids = {number for content in contents if (number := tokenizer.token_to_id(content)) is not None}
    return frozenset(ids | {number for number, token in added if token.special})
