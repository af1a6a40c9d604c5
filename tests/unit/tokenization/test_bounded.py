from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import tokenizers

from serve_app.errors import TokenizationError
from serve_app.tokenization.bounded import (
    MARGIN,
    MOST_CHARACTERS,
    PART_CHARACTERS,
    SHORT_CHARACTERS,
    TextEncoding,
    parts,
)
from tests.support.checkpoints import byte_bpe, unigram, wordpiece
from tests.support.tokenizers import encode, make, refuse

LIMIT = 9
VERY_LONG = "the quick brown fox jumps over the lazy dog. " * 2000


class RecordingTokenizer:
    """Record the length of each text that is encoded."""

    def __init__(self, raw: tokenizers.Tokenizer) -> None:
        self._raw = raw
        self.characters: list[int] = []

    def encode_batch_fast(
        self, texts: list[str], *, add_special_tokens: bool
    ) -> list[tokenizers.Encoding]:
        """Encode texts and record their lengths."""
        self.characters += [len(text) for text in texts]
        return self._raw.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("maker", [wordpiece, byte_bpe, unigram])
def test_an_excerpt_is_truncated_like_the_whole_text(
    tmp_path: Path, maker: object, direction: str
) -> None:
    raw: tokenizers.Tokenizer = maker()  # type: ignore[operator]
    tokenizer = make(tmp_path, raw, max_input_tokens=LIMIT)

    ids = encode(tokenizer, VERY_LONG, truncate_direction=direction)  # type: ignore[arg-type]

    raw.enable_truncation(LIMIT, direction=direction)
    assert ids == [raw.encode(VERY_LONG).ids]


@pytest.mark.parametrize("maker", [wordpiece, byte_bpe, unigram])
def test_left_truncation_of_a_very_long_text_keeps_the_prompt(
    tmp_path: Path, maker: object
) -> None:
    raw: tokenizers.Tokenizer = maker()  # type: ignore[operator]
    tokenizer = make(tmp_path, raw, max_input_tokens=LIMIT)
    short = VERY_LONG[-450:]

    ids = encode(tokenizer, VERY_LONG, prompt_name="query", truncate_direction="left")

    assert ids == encode(tokenizer, short, prompt_name="query", truncate_direction="left")
    assert len(ids[0]) == LIMIT


def test_left_truncation_reads_only_the_prompt_and_an_excerpt() -> None:
    recording = RecordingTokenizer(wordpiece())
    encoding = TextEncoding(recording, adds_special_tokens=True, max_input_tokens=LIMIT)

    encoding.encode(["query: " + VERY_LONG], reach=encoding.reach, from_left=True, head=7)

    assert recording.characters == [7 + (encoding.reach or 0)]


def test_only_an_excerpt_of_a_very_long_text_is_read() -> None:
    recording = RecordingTokenizer(wordpiece())
    encoding = TextEncoding(recording, adds_special_tokens=True, max_input_tokens=LIMIT)

    (ids,) = encoding.encode([VERY_LONG], reach=encoding.reach)

    assert recording.characters == [encoding.reach]
    assert len(ids) > LIMIT + MARGIN


def test_a_long_text_of_few_tokens_is_read_completely() -> None:
    raw = wordpiece()
    encoding = TextEncoding(raw, adds_special_tokens=True, max_input_tokens=LIMIT)
    text = " " * 20_000 + "the fox"

    ids = encoding.encode([text], reach=encoding.reach)

    assert ids == [raw.encode("the fox").ids]


def test_the_error_for_an_excerpt_says_more_than_n_tokens(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, wordpiece(), max_input_tokens=LIMIT)

    complete, excerpt = refuse(tokenizer, "fox " * 20), refuse(tokenizer, VERY_LONG)

    assert "however you requested 22 tokens in input[0]" in complete.message
    assert "however you requested more than " in excerpt.message


def test_tokenization_stops_at_the_first_too_long_text(tmp_path: Path) -> None:
    """A later part has a lone surrogate, which cannot be tokenized; it is not reached."""
    tokenizer = make(tmp_path, wordpiece(), max_input_tokens=LIMIT)
    filler = "fox" * (PART_CHARACTERS // 3)

    error = refuse(tokenizer, "fox " * 20, filler, "\ud800")

    assert error.param == "input[0]"


def test_tokenization_stops_when_nobody_waits_for_it(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, wordpiece())
    calls = []

    def is_wanted() -> bool:
        calls.append("is_wanted")
        return len(calls) < 2

    with pytest.raises(CancelledError):
        tokenizer.encode_texts(
            ["a" * PART_CHARACTERS] * 9,
            truncate=True,
            truncate_direction="right",
            is_wanted=is_wanted,
        )

    assert len(calls) == 2


def test_an_invalid_text_in_a_later_part_is_named_by_its_index(
    tmp_path: Path,
) -> None:
    tokenizer = make(tmp_path, wordpiece(), max_input_tokens=LIMIT)

    with pytest.raises(TokenizationError) as raised:
        encode(tokenizer, "a" * PART_CHARACTERS, "fox", "\ud800")

    assert raised.value.param == "input[2]"


def test_parts_contain_all_texts_in_order() -> None:
    texts = ["a" * 100_000, "b" * 100_000, "c" * 400_000, "d", "e"]

    lists = [list(part) for part in parts(texts)]

    assert [[text[0] for text in part] for part in lists] == [["a", "b"], ["c"], ["d", "e"]]


def test_a_huge_text_with_almost_no_tokens_is_rejected() -> None:
    """The library needs at least 60 bytes per character, also for spaces."""
    recording = RecordingTokenizer(wordpiece())
    encoding = TextEncoding(recording, adds_special_tokens=True, max_input_tokens=LIMIT)
    huge = "the" + " " * MOST_CHARACTERS

    with pytest.raises(TokenizationError) as raised:
        encoding.encode(["the", huge], first=3, reach=encoding.reach)

    assert raised.value.param == "input[4]"
    assert sum(recording.characters) < 2 * SHORT_CHARACTERS
