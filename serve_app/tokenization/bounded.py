"""Texts to ids, in parts and no further than needed, so that no body can take much memory or time.

The library takes some 250 bytes and a microsecond for each character while it is at it: a body of 16 MiB that is one
text would take gigabytes and many seconds, only to be called too long. Knows nothing of prompts, requests or torch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from serve_app.errors import TokenizationError

# Most characters that are with the library at once.
PART_CHARACTERS = 250_000
# Of a text that is longer than this for each token that an input may have, an excerpt is enough to tell that it is too
# long, or to cut it; English has four to five characters a token. Where the excerpt has fewer tokens, all is read.
CHARACTERS_PER_TOKEN = 64
SHORT_CHARACTERS = 10_000
# More characters are not read of a text whose excerpt has hardly any tokens, such as one of spaces.
MOST_CHARACTERS = 1_000_000
# Tokens at the excerpt's end that may be others than in the whole text.
MARGIN = 32


class TextEncoding:
    """A tokenizer of the library tokenizers, used within bounds.

    Args:
        tokenizer: without padding or truncation.
        adds_special_tokens: whether ids get them.
        max_input_tokens: most tokens that an input may have; None for no limit.
    """

    def __init__(
        self, tokenizer: Any, *, adds_special_tokens: bool, max_input_tokens: int | None
    ) -> None:
        self._tokenizer = tokenizer
        self._adds_special_tokens = adds_special_tokens
        self._max_input_tokens = max_input_tokens

    @property
    def reach(self) -> int | None:
        """Characters that hold more tokens than an input may have, in any text but the strangest."""
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
        """Return the ids of texts; of one that is far too long those of an excerpt, which show that it is.

        Args:
            texts: what to encode.
            first: the index of the first of them in the request, for errors.
            reach: most characters that are looked at, if they have more tokens than an input may; None: all.
            from_left: the excerpt is the text's end.
            head: characters at a text's beginning, a prompt's, that such an excerpt begins with all the same.

        Raises:
            TokenizationError: a text cannot be tokenized, or is huge and has hardly any tokens.
        """
        excerpts = [_excerpt(text, reach, from_left=from_left, head=head) for text in texts]
        inputs = self._encode(excerpts, first)
        enough = (self._max_input_tokens or 0) + MARGIN
        for index, (text, excerpt) in enumerate(zip(texts, excerpts, strict=True)):
            if excerpt is not text and len(inputs[index]) <= enough:
                if len(text) > MOST_CHARACTERS:
                    raise _strange(f"input[{first + index}]", len(text))
                inputs[index] = self._encode([text], first + index)[0]
        return inputs

    def _encode(self, texts: Sequence[str], first: int) -> list[list[int]]:
        try:
            encodings = self._tokenizer.encode_batch_fast(
                texts, add_special_tokens=self._adds_special_tokens
            )
        except Exception as error:
            # The library says that a text is at fault, not which one: one by one tells.
            culprit = next((i for i, text in enumerate(texts) if not self._is_tokenizable(text)), 0)
            param = f"input[{first + culprit}]"
            raise TokenizationError(
                f"{param} cannot be tokenized.", "tokenization_error", param
            ) from error
        return [encoding.ids for encoding in encodings]

    def _is_tokenizable(self, text: str) -> bool:
        try:
            self._tokenizer.encode(text)
        except Exception:
            return False
        return True


def _strange(param: str, characters: int) -> TokenizationError:
    message = f"{param} has {characters} characters, and hardly any tokens where it was looked at; it is not read."
    return TokenizationError(message, "tokenization_error", param)


def _excerpt(text: str, reach: int | None, *, from_left: bool, head: int) -> str:
    if reach is None or len(text) <= head + reach:
        return text
    return text[:head] + text[-reach:] if from_left else text[:reach]


def parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a list of texts into parts of some characters; a longer text is a part of its own."""
    start = characters = 0
    for index, text in enumerate(texts):
        if characters + len(text) > PART_CHARACTERS and index > start:
            yield texts[start:index]
            start, characters = index, 0
        characters += len(text)
    yield texts[start:]
