"""Tokenizes texts in bounded memory and time.

The `tokenizers` library needs about 250 bytes of memory and one microsecond per character. A 16 MiB body with a single
text would take gigabytes and many seconds, only to be rejected as too long. Two measures prevent this:

- A list of texts is tokenized in parts of at most `PART_CHARACTERS` characters in total. A longer text is a part of its
  own.
- Of a text that is far longer than an input may be, only an excerpt is tokenized at first. If the excerpt has too many
  tokens, the whole text has too many tokens as well, and the ids of the excerpt are enough to truncate the text.
  Otherwise, the whole text is tokenized, unless it has more than `MOST_CHARACTERS` characters: such a text is rejected.

This module does not depend on torch or on the HTTP API.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from serve_app.errors import TokenizationError

# The maximum number of characters in one call of the library, except for a single longer text.
PART_CHARACTERS = 250_000
# An excerpt has this many characters for each token that an input may have. English has four to five per token.
CHARACTERS_PER_TOKEN = 64
# The minimum length of an excerpt.
SHORT_CHARACTERS = 10_000
# Longer texts are rejected if their excerpt has few tokens, for example because it consists of spaces.
MOST_CHARACTERS = 1_000_000
# The number of tokens at the end of an excerpt that may differ from those of the whole text.
MARGIN = 32


class TextEncoding:
    """Encode texts with a `tokenizers.Tokenizer`, in bounded memory and time.

    Args:
        tokenizer: the tokenizer, without padding or truncation.
        adds_special_tokens: whether to add special tokens to each text.
        max_input_tokens: the maximum number of tokens in an input; None for no limit.
    """

    def __init__(
        self, tokenizer: Any, *, adds_special_tokens: bool, max_input_tokens: int | None
    ) -> None:
        self._tokenizer = tokenizer
        self._adds_special_tokens = adds_special_tokens
        self._max_input_tokens = max_input_tokens

    @property
    def reach(self) -> int | None:
        """The length of an excerpt, in characters; None without a limit on tokens.

        Almost any text of this length has too many tokens.
        """
        limit = self._max_input_tokens
        return None if limit is None else max(CHARACTERS_PER_TOKEN * limit, SHORT_CHARACTERS)

    def encode(
        self,
        texts: Sequence[str],
        *,
        first: int = 0,
        reach: int | None = None,
        from_left: bool = False,
        head: int = 0,
    ) -> list[list[int]]:
        """Return the ids of each text, or those of an excerpt if the excerpt shows that the text is too long.

        Args:
            texts: the texts to encode.
            first: the index of the first text in the request, for errors.
            reach: the length of an excerpt, in characters; None reads all texts to their end.
            from_left: whether to take the excerpt from the end of the text, because the left side is truncated.
            head: the length of the prompt, in characters. An excerpt from the end of the text still starts with the
                prompt.

        Raises:
            TokenizationError: a text cannot be tokenized, or it has more than `MOST_CHARACTERS` characters and its
                excerpt has few tokens.
        """
        excerpts = [_excerpt(text, reach, from_left=from_left, head=head) for text in texts]
        inputs = self._encode(excerpts, first)
        sufficient_tokens = (self._max_input_tokens or 0) + MARGIN
        for index, (text, excerpt) in enumerate(zip(texts, excerpts, strict=True)):
            if excerpt is not text and len(inputs[index]) <= sufficient_tokens:
                if len(text) > MOST_CHARACTERS:
                    raise _too_few_tokens(first + index, len(text))
                inputs[index] = self._encode([text], first + index)[0]
        return inputs

    def _encode(self, texts: Sequence[str], first: int) -> list[list[int]]:
        try:
            encodings = self._tokenizer.encode_batch_fast(
                texts, add_special_tokens=self._adds_special_tokens
            )
        except Exception as error:
            # The library does not say which text is at fault. Try them one by one.
            invalid = next((i for i, text in enumerate(texts) if not self._is_tokenizable(text)), 0)
            raise TokenizationError(
                "{item} cannot be tokenized.", "tokenization_error", "input", index=first + invalid
            ) from error
        return [encoding.ids for encoding in encodings]

    def _is_tokenizable(self, text: str) -> bool:
        try:
            self._tokenizer.encode(text)
        except Exception:
            return False
        return True


def _too_few_tokens(index: int, characters: int) -> TokenizationError:
    message = (
        f"{{item}} has {characters} characters, and the part that was read has almost no tokens. Such a text may have "
        f"at most {MOST_CHARACTERS} characters. Remove its white space."
    )
    return TokenizationError(message, "tokenization_error", "input", index=index)


def _excerpt(text: str, reach: int | None, *, from_left: bool, head: int) -> str:
    if reach is None or len(text) <= head + reach:
        return text
    return text[:head] + text[-reach:] if from_left else text[:reach]


def parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Group texts into parts of at most `PART_CHARACTERS` characters in total. A longer text is a part of its own."""
    start = characters = 0
    for index, text in enumerate(texts):
        if characters + len(text) > PART_CHARACTERS and index > start:
            yield texts[start:index]
            start, characters = index, 0
        characters += len(text)
    yield texts[start:]
