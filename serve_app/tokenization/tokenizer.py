"""Converts an input and its prompt to the token ids that the model reads, and truncates inputs that are too long.

The ids are the same as those that sentence-transformers produces. This module does not depend on torch, transformers or
the HTTP API.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from serve_app.checkpoints.metadata import Checkpoint
from serve_app.errors import InvalidRequestError, ModelLoadError, TokenizationError
from serve_app.messages import TokenizedInputs
from serve_app.tokenization.bounded import MARGIN, SHORT_CHARACTERS, TextEncoding, parts
from serve_app.tokenization.loader import load_tokenizer_file

TruncateDirection = Literal["right", "left"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: its text, its ids without special tokens, and its length as pooling counts it."""

    text: str
    ids: Sequence[int]
    length: int


NO_PROMPT = Prompt("", (), 0)


class Tokenizer:
    """A model's tokenizer. It is immutable and thread-safe.

    Args:
        checkpoint: the metadata from the model's files.
        max_input_tokens: the maximum number of tokens in an input. It can lower the model's own limit but not raise it.
        prompts: prompts by name, in addition to the model's own prompts. A prompt with the name of one of the model's
            own prompts replaces that prompt.

    Raises:
        ModelLoadError: the model is not an embedding model, has no `tokenizer.json`, or its limit leaves no room for
            text.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_input_tokens: int | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        if not checkpoint.embeds:
            raise ModelLoadError(
                f"{checkpoint.directory} is not an embedding model: {checkpoint.reason}"
            )
        file = load_tokenizer_file(checkpoint)
        self._tokenizer = file.tokenizer
        self._prefix, self._suffix = file.prefix, file.suffix
        self._special_ids = file.special_ids
        self._vocabulary_size = file.vocabulary_size
        self._adds_special_tokens = checkpoint.adds_special_tokens
        limits = [n for n in (max_input_tokens, checkpoint.max_input_tokens) if n is not None]
        self._max_input_tokens = min(limits, default=None)
        if limits and min(limits) <= len(self._prefix) + len(self._suffix):
            raise ModelLoadError(
                f"{checkpoint.directory}: a limit of {min(limits)} tokens per input leaves no room for text in "
                "addition to the special tokens"
            )
        self._texts = TextEncoding(
            file.tokenizer,
            adds_special_tokens=checkpoint.adds_special_tokens,
            max_input_tokens=self._max_input_tokens,
        )
        prompts = {**checkpoint.prompts, **(prompts or {})}
        self._prompts = {name: self._prompt(text) for name, text in prompts.items()}

    @property
    def max_input_tokens(self) -> int | None:
        """The maximum number of tokens in an input, with special tokens and prompt; None for no limit."""
        return self._max_input_tokens

    @property
    def prompts(self) -> Mapping[str, str]:
        """The texts of the prompts, by name."""
        return {name: prompt.text for name, prompt in self._prompts.items()}

    @property
    def vocabulary_size(self) -> int:
        """The largest token id plus one."""
        return self._vocabulary_size

    def find_prompt(self, name: str | None) -> Prompt:
        """Return the prompt with this name; an empty prompt for None.

        Raises:
            InvalidRequestError: the prompt does not exist.
        """
        if name is None:
            return NO_PROMPT  # the default prompt in a model's files is not applied
        if name not in self._prompts:
            known = ", ".join(self._prompts) or "none"
            raise InvalidRequestError(
                f"Unknown prompt. This model's prompts: {known}.", "unknown_prompt", "prompt_name"
            )
        return self._prompts[name]

    def prompt_for(self, input_type: str) -> str | None:
        """Return the name of the prompt for an input type, or None if there is none.

        A non-empty prompt with the name of the input type comes first. Otherwise the input type's role, query or
        document, selects the prompt that `SentenceTransformer.encode_query` or `encode_document` would use. The input
        types `classification` and `clustering` have no such role.

        Args:
            input_type: a value of the request's `input_type` field.
        """
        if self._prompts.get(input_type, NO_PROMPT).text:
            return input_type
        if input_type in ("classification", "clustering"):
            return None
        names = ("query",) if input_type.endswith("query") else ("document", "passage", "corpus")
        return next((name for name in names if name in self._prompts), None)

    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        prompt: Prompt = NO_PROMPT,
        truncate: bool = False,
        truncate_direction: TruncateDirection = "right",
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> TokenizedInputs:
        """Tokenize texts.

        Args:
            texts: the texts to encode.
            prompt: the prompt to prepend to each text.
            truncate: whether to truncate texts that are too long.
            truncate_direction: the side from which tokens are removed.
            is_wanted: called before each part of the texts. It returns False once nobody waits for the result.

        Raises:
            CancelledError: `is_wanted` returned False.
            TokenizationError: a text is too long and `truncate` is False, or a text cannot be tokenized.
        """
        prompted = [prompt.text + text for text in texts] if prompt.text else list(texts)
        reach = self._texts.reach
        from_left = truncate and truncate_direction == "left"
        inputs: list[list[int]] = []
        for part in parts(prompted):
            if not is_wanted():
                raise CancelledError
            first = len(inputs)
            inputs += self._texts.encode(
                part, first=first, reach=reach, from_left=from_left, head=len(prompt.text)
            )
            if not truncate:  # stop at the first input that is too long
                for index in self._too_long(inputs[first:]):
                    is_whole = reach is None or len(part[index]) <= reach
                    raise self._context_error(
                        first + index, len(inputs[first + index]), is_whole=is_whole
                    )
        too_long = self._too_long(inputs)
        for index in too_long:
            head = [*self._prefix, *self._prompt_ids(prompted[index], prompt)] if from_left else []
            inputs[index] = self._cut(inputs[index], head, truncate_direction)
        return _pack(inputs, prompt.length, truncated=len(too_long))

    def encode_ids(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        prompt: Prompt = NO_PROMPT,
        truncate: bool = False,
        truncate_direction: TruncateDirection = "right",
    ) -> TokenizedInputs:
        """Add special tokens and prompt to inputs that already consist of the model's own token ids.

        Raises:
            InvalidRequestError: an id is not in the vocabulary.
            TokenizationError: an input is too long and `truncate` is False.
        """
        for index, ids in enumerate(inputs):
            self._check_range(ids, index)
        head = [*self._prefix, *prompt.ids]
        complete = [[*head, *ids, *self._suffix] for ids in inputs]
        too_long = self._too_long(complete)
        for index in too_long:
            if not truncate:
                raise self._context_error(index, len(complete[index]), is_whole=True)
            complete[index] = self._cut(complete[index], head, truncate_direction)
        return _pack(complete, prompt.length, truncated=len(too_long))

    def _too_long(self, inputs: Sequence[Sequence[int]]) -> list[int]:
        """Return the indices of the inputs that are too long."""
        limit = self._max_input_tokens
        return [] if limit is None else [i for i, ids in enumerate(inputs) if len(ids) > limit]

    def _context_error(self, index: int, tokens: int, *, is_whole: bool) -> TokenizationError:
        count = f"{tokens}" if is_whole else f"more than {tokens - MARGIN}"
        return TokenizationError(
            f"This model's maximum context length is {self._max_input_tokens} tokens, however you requested "
            f"{count} tokens in {{item}}. Shorten it, or set truncate to true.",
            "context_length_exceeded",
            "input",
            index=index,
        )

    def _cut(self, ids: list[int], head: Sequence[int], direction: TruncateDirection) -> list[int]:
        """Truncate the ids of one input, but keep the special tokens at both ends.

        Args:
            ids: the ids of the input or of its excerpt.
            head: the ids to keep at the front if the left side is truncated: special tokens and prompt.
            direction: the side from which tokens are removed.
        """
        limit = self._max_input_tokens
        assert limit is not None, "without a limit no input is too long"
        source = ids if direction == "right" else [*head]
        front = source[: limit - len(self._suffix)]
        return front + ids[len(ids) - (limit - len(front)) :]

    def _prompt(self, text: str) -> Prompt:
        """Tokenize a prompt, and measure it as sentence-transformers' `Transformer._get_prompt_length` does.

        The length is the number of ids after truncation, minus one if the last id is a special token.
        """
        if not text:
            return NO_PROMPT
        ids = self._texts.encode([text])[0]
        bare = ids[len(self._prefix) : len(ids) - len(self._suffix)]
        if not self._adds_special_tokens:
            return Prompt(text, bare, 0)
        if self._max_input_tokens is not None and len(ids) > self._max_input_tokens:
            ids = self._cut(ids, (), "right")
        length = len(ids)
        if ids and ids[-1] in self._special_ids:
            length -= 1
        return Prompt(text, bare, length)

    def _prompt_ids(self, prompted: str, prompt: Prompt) -> list[int]:
        """Return the ids of the prompt. A token that spans prompt and text belongs to the text."""
        if not prompt.text:
            return []
        start = prompted[: len(prompt.text) + SHORT_CHARACTERS]
        encoding = self._tokenizer.encode(start, add_special_tokens=False)
        ends = (end for _, end in encoding.offsets)
        count = next((n for n, end in enumerate(ends) if end > len(prompt.text)), None)
        ids: list[int] = encoding.ids
        return ids[:count]

    def _check_range(self, ids: Sequence[int], index: int) -> None:
        try:
            array = np.fromiter(ids, np.int64, len(ids))
        except OverflowError:
            array = np.array([-1])
        if array.size and (array.min() < 0 or array.max() >= self._vocabulary_size):
            raise InvalidRequestError(
                f"{{item}} contains a token id outside the model's range of 0 to {self._vocabulary_size - 1}.",
                "invalid_token_id",
                "input",
                index=index,
            )


def _pack(
    inputs: Sequence[Sequence[int]], prompt_length: int, *, truncated: int
) -> TokenizedInputs:
    lengths = np.fromiter(map(len, inputs), np.int32, len(inputs))
    ids = np.fromiter(chain.from_iterable(inputs), np.int32, int(lengths.sum()))
    return TokenizedInputs(ids, lengths, prompt_length, truncated)
