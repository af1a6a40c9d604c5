"""Texts of any length in bounded memory and time, with the ids that reading all of them would give."""

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


class Watched:
    """A tokenizer that remembers how many characters it was given."""

    def __init__(self, raw: tokenizers.Tokenizer) -> None:
        self._raw = raw
        self.characters: list[int] = []

    def encode_batch_fast(
        self, texts: list[str], *, add_special_tokens: bool
    ) -> list[tokenizers.Encoding]:
        """Encode, and remember."""
        self.characters += [len(text) for text in texts]
        return self._raw.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("maker", [wordpiece, byte_bpe, unigram])
def test_an_excerpt_is_cut_as_the_whole_text(tmp_path: Path, maker: object, direction: str) -> None:
    """Far more text than the model reads gives the ids that the library's own truncation gives."""
    raw: tokenizers.Tokenizer = maker()  # type: ignore[operator]
    tokenizer = make(tmp_path, raw, max_input_tokens=LIMIT)

    ids = encode(tokenizer, VERY_LONG, truncate_direction=direction)  # type: ignore[arg-type]

    raw.enable_truncation(LIMIT, direction=direction)
    assert ids == [raw.encode(VERY_LONG).ids]


@pytest.mark.parametrize("maker", [wordpiece, byte_bpe, unigram])
def test_a_prompt_survives_the_cut_of_a_very_long_text(tmp_path: Path, maker: object) -> None:
    """From the left the excerpt is the prompt and the text's end; its ids are those of reading everything."""
    raw: tokenizers.Tokenizer = maker()  # type: ignore[operator]
    tokenizer = make(tmp_path, raw, max_input_tokens=LIMIT)
    short = VERY_LONG[-450:]

    ids = encode(tokenizer, VERY_LONG, prompt_name="query", truncate_direction="left")

    assert ids == encode(tokenizer, short, prompt_name="query", truncate_direction="left")
    assert len(ids[0]) == LIMIT


def test_with_a_prompt_no_more_is_read_from_the_left_than_without() -> None:
    """A body of megabytes costs what an excerpt costs."""
    watched = Watched(wordpiece())
    encoding = TextEncoding(watched, adds_special_tokens=True, max_input_tokens=LIMIT)

    encoding.encode(["query: " + VERY_LONG], reach=encoding.reach, from_left=True, head=7)

    assert watched.characters == [7 + (encoding.reach or 0)]


def test_no_more_is_read_than_shows_that_a_text_is_too_long() -> None:
    """A body of megabytes costs what an excerpt costs."""
    watched = Watched(wordpiece())
    encoding = TextEncoding(watched, adds_special_tokens=True, max_input_tokens=LIMIT)

    (ids,) = encoding.encode([VERY_LONG], reach=encoding.reach)

    assert watched.characters == [encoding.reach]
    assert len(ids) > LIMIT + MARGIN


def test_a_long_text_of_few_tokens_is_read_to_its_end() -> None:
    """White space is no token: what matters may stand behind any amount of it."""
    raw = wordpiece()
    encoding = TextEncoding(raw, adds_special_tokens=True, max_input_tokens=LIMIT)
    text = " " * 20_000 + "the fox"

    ids = encoding.encode([text], reach=encoding.reach)

    assert ids == [raw.encode("the fox").ids]


def test_the_count_of_an_excerpt_is_a_least_one(tmp_path: Path) -> None:
    """OpenAI's words, with an exact number for a text that was read to its end."""
    tokenizer = make(tmp_path, wordpiece(), max_input_tokens=LIMIT)

    exact, least = refuse(tokenizer, "fox " * 20), refuse(tokenizer, VERY_LONG)

    assert "however you requested 22 tokens in input[0]" in exact.message
    assert "however you requested more than " in least.message


def test_the_first_text_that_is_too_long_ends_it(tmp_path: Path) -> None:
    """Nothing after its part is read: a lone surrogate there, which cannot be, is not reached."""
    tokenizer = make(tmp_path, wordpiece(), max_input_tokens=LIMIT)
    filler = "fox" * (PART_CHARACTERS // 3)

    error = refuse(tokenizer, "fox " * 20, filler, "\ud800")

    assert error.param == "input[0]"


def test_texts_that_nobody_waits_for_any_more_are_not_read(tmp_path: Path) -> None:
    """After the part that is under way."""
    tokenizer = make(tmp_path, wordpiece())
    asked = []

    def is_wanted() -> bool:
        asked.append("once more")
        return len(asked) < 2

    with pytest.raises(CancelledError):
        tokenizer.encode_texts(
            ["a" * PART_CHARACTERS] * 9,
            prompt_name=None,
            truncate=True,
            truncate_direction="right",
            is_wanted=is_wanted,
        )

    assert len(asked) == 2


def test_a_text_that_cannot_be_tokenized_is_named_by_its_place_in_the_request(
    tmp_path: Path,
) -> None:
    """Also in a later part."""
    tokenizer = make(tmp_path, wordpiece(), max_input_tokens=LIMIT)

    with pytest.raises(TokenizationError) as raised:
        encode(tokenizer, "a" * PART_CHARACTERS, "fox", "\ud800")

    assert raised.value.param == "input[2]"


def test_parts_hold_all_texts_in_order() -> None:
    """A text that is longer than a part is one of its own."""
    texts = ["a" * 100_000, "b" * 100_000, "c" * 400_000, "d", "e"]

    cut = [list(part) for part in parts(texts)]

    assert [[text[0] for text in part] for part in cut] == [["a", "b"], ["c"], ["d", "e"]]


def test_a_huge_text_with_hardly_any_tokens_is_refused_unread() -> None:
    """The library takes 60 bytes and more for each character, spaces too; a body may have millions."""
    watched = Watched(wordpiece())
    encoding = TextEncoding(watched, adds_special_tokens=True, max_input_tokens=LIMIT)
    huge = "the" + " " * MOST_CHARACTERS

    with pytest.raises(TokenizationError) as raised:
        encoding.encode(["the", huge], first=3, reach=encoding.reach)

    assert raised.value.param == "input[4]"
    assert sum(watched.characters) < 2 * SHORT_CHARACTERS
