"""A model's `tokenizer.json`, set up as sentence-transformers would: the tokenizer and its special tokens.

Transformers changes a few tokenizers when it loads them; what it changes for embedding models is followed here, without
importing it, and the encoder checks at load that both give the same ids. The only home of tokenizers.
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

# Classes of transformers that take `tokenizer.json` as it is; BERT's others build its normalizer from their settings.
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
# Letters, a digit, a mark and spaces: something in it has a token in any vocabulary that serves a language.
PROBE = "a 1 . e A é 字 я"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A loaded tokenizer, never changed again.

    Attributes:
        tokenizer: neither cuts nor pads.
        prefix: ids of the special tokens before a text.
        suffix: ids of the special tokens after it.
        special_ids: ids of all special tokens.
        vocabulary_size: one more than the largest id.
    """

    tokenizer: Tokenizer
    prefix: list[int]
    suffix: list[int]
    special_ids: frozenset[int]
    vocabulary_size: int


def load_tokenizer_file(checkpoint: Checkpoint) -> TokenizerFile:
    """Load the tokenizer of a model.

    Raises:
        ModelLoadError: there is no `tokenizer.json`, or it cannot be read.
    """
    directory = checkpoint.tokenizer_directory or checkpoint.directory
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelLoadError(
            f"{directory} has no tokenizer.json; make it with "
            "`AutoTokenizer.from_pretrained(directory).save_pretrained(directory)` of transformers"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
        config = directory / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except Exception as error:  # the library's own are plain `Exception`s
        raise ModelLoadError(f"the tokenizer in {directory} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prefix: list[int] = []
    suffix: list[int] = []
    if (
        checkpoint.adds_special_tokens
    ):  # StaticEmbedding reads tokenizer.json itself, without transformers
        _follow_settings(tokenizer, settings)
        prefix, suffix = _affixes(tokenizer)
    if checkpoint.lowercase:
        _put_lowercase_first(tokenizer)
    return TokenizerFile(
        tokenizer,
        prefix,
        suffix,
        _special_ids(tokenizer, settings),
        1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
    )


def _follow_settings(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Build BERT's normalizer from `tokenizer_config.json`, as transformers does, whatever `tokenizer.json` says."""
    plain = settings.get("tokenizer_class") in PLAIN_CLASSES
    if not plain and any(isinstance(step, BertNormalizer) for step in _steps(tokenizer.normalizer)):
        tokenizer.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            lowercase=settings.get("do_lower_case", True),
        )


def _affixes(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that go before and after a text."""
    encoding = tokenizer.encode(PROBE)
    text = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
    if not text:
        raise ModelLoadError("tokenizer.json knows none of the commonest letters; it is broken")
    return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]


def _put_lowercase_first(tokenizer: Tokenizer) -> None:
    """Lower-case before all else, unless that is done already: what `do_lower_case` means to sentence-transformers."""
    steps = _steps(tokenizer.normalizer)
    if not any(isinstance(step, Lowercase) for step in steps):
        tokenizer.normalizer = NormalizerSequence([Lowercase(), *steps])


def _steps(normalizer: Normalizer | None) -> list[Normalizer]:
    steps: list[Normalizer] = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, NormalizerSequence):
        steps = list(normalizer)  # type: ignore[call-overload]  # it has __getitem__, its stub does not
    return steps


def _special_ids(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder().items()
    named = (settings.get(name) for name in NAMED_TOKENS)
    contents = (token["content"] if isinstance(token, dict) else token for token in named if token)
    ids = {number for content in contents if (number := tokenizer.token_to_id(content)) is not None}
    return frozenset(ids | {number for number, token in added if token.special})
