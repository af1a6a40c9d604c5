"""Texts, prompts and token ids of an input to the ids that the model reads, and what is cut when they are too many.

Gives the ids that sentence-transformers gives. Knows nothing of torch, transformers, requests or batches.
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
class Tokenized:
    """What the tokenizer made of some inputs: their ids, and how many of the inputs were cut."""

    inputs: TokenizedInputs
    truncated: int


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt: its text, its bare ids, and its length as sentence-transformers' pooling counts it."""

    text: str
    ids: Sequence[int]
    length: int


NO_PROMPT = _Prompt("", (), 0)


class Tokenizer:
    """A model's tokenizer. It does not change after its construction, and any number of threads may use it at once.

    Args:
        checkpoint: the model, as its files describe it.
        max_input_tokens: lowers the most tokens of an input; never raises it.
        prompts: prompts by name, added to the model's own and put before them.

    Raises:
        ModelLoadError: the model does not embed, brings no `tokenizer.json`, or leaves no room for text.
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
                f"{checkpoint.directory} is no embedding model: {checkpoint.reason}"
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
                f"{checkpoint.directory}: {min(limits)} tokens in an input leave no room beside the special tokens"
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
        """Most tokens that an input may have, special tokens and prompt included; None for no limit."""
        return self._max_input_tokens

    @property
    def prompts(self) -> Mapping[str, str]:
        """The texts that are put before inputs, by the names that `prompt_name` may have."""
        return {name: prompt.text for name, prompt in self._prompts.items()}

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id that the tokenizer knows."""
        return self._vocabulary_size

    def check_prompt(self, name: str | None) -> None:
        """Return if there is such a prompt; None asks for none.

        Raises:
            InvalidRequestError: there is not.
        """
        self._find_prompt(name)

    def prompt_for(self, input_type: str) -> str | None:
        """Return the prompt of a kind of input: the one of that name, else the one of its role, else None.

        The roles' prompts are those that `SentenceTransformer.encode_query` and `encode_document` take.

        Args:
            input_type: a value of the request's field of that name.
        """
        if self._prompts.get(input_type, NO_PROMPT).text:
            return input_type
        names = ("query",) if input_type.endswith("query") else ("document", "passage", "corpus")
        return next((name for name in names if name in self._prompts), None)

    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None,
        truncate: bool,
        truncate_direction: TruncateDirection,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Tokenized:
        """Return the ids of texts.

        Args:
            texts: what to encode.
            prompt_name: the prompt that is put before each; None for none.
            truncate: cut a text that is too long.
            truncate_direction: the side that is cut.
            is_wanted: whether somebody still waits for it; asked now and then.

        Raises:
            CancelledError: nobody does.
            InvalidRequestError: there is no such prompt.
            TokenizationError: a text is too long and `truncate` is false, or it cannot be tokenized.
        """
        prompt = self._find_prompt(prompt_name)
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
            if not truncate:  # the first that is too long ends it, whatever else there is
                for index in self._too_long(inputs[first:]):
                    is_whole = reach is None or len(part[index]) <= reach
                    raise self._context_error(
                        first + index, len(inputs[first + index]), is_whole=is_whole
                    )
        too_long = self._too_long(inputs)
        for index in too_long:
            head = [*self._prefix, *self._prompt_ids(prompted[index], prompt)] if from_left else []
            inputs[index] = self._cut(inputs[index], head, truncate_direction)
        return Tokenized(_pack(inputs, prompt.length), len(too_long))

    def encode_ids(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        prompt_name: str | None,
        truncate: bool,
        truncate_direction: TruncateDirection,
    ) -> Tokenized:
        """Return the ids of inputs that are the model's own ids already, with the special tokens and the prompt added.

        Raises:
            InvalidRequestError: there is no such prompt, or the vocabulary has no such id.
            TokenizationError: an input is too long and `truncate` is false.
        """
        prompt = self._find_prompt(prompt_name)
        for index, ids in enumerate(inputs):
            self._check_range(ids, index)
        head = [*self._prefix, *prompt.ids]
        complete = [[*head, *ids, *self._suffix] for ids in inputs]
        too_long = self._too_long(complete)
        for index in too_long:
            if not truncate:
                raise self._context_error(index, len(complete[index]), is_whole=True)
            complete[index] = self._cut(complete[index], head, truncate_direction)
        return Tokenized(_pack(complete, prompt.length), len(too_long))

    def _too_long(self, inputs: Sequence[Sequence[int]]) -> list[int]:
        """Return which inputs have too many tokens."""
        limit = self._max_input_tokens
        return [] if limit is None else [i for i, ids in enumerate(inputs) if len(ids) > limit]

    def _context_error(self, index: int, tokens: int, *, is_whole: bool) -> TokenizationError:
        param = f"input[{index}]"
        count = f"{tokens}" if is_whole else f"more than {tokens - MARGIN}"
        return TokenizationError(
            f"This model's maximum context length is {self._max_input_tokens} tokens, however you requested "
            f"{count} tokens in {param}. Shorten it, or set truncate to true.",
            "context_length_exceeded",
            param,
        )

    def _cut(self, ids: list[int], head: Sequence[int], direction: TruncateDirection) -> list[int]:
        """Take from ids what is too much, and keep the special tokens at both ends.

        Args:
            ids: all ids of one input, or of its excerpt.
            head: what stays in front when the left side is cut: the special tokens and the prompt.
            direction: the side that is cut.
        """
        limit = self._max_input_tokens
        assert limit is not None, "nothing is too long where there is no limit"
        front = (ids if direction == "right" else [*head])[: limit - len(self._suffix)]
        return front + ids[len(ids) - (limit - len(front)) :]

    def _prompt(self, text: str) -> _Prompt:
        """Measure a prompt as `Transformer._get_prompt_length` does: cut, less a special token at its end."""
        if not text:
            return NO_PROMPT
        ids = self._texts.encode([text])[0]
        bare = ids[len(self._prefix) : len(ids) - len(self._suffix)]
        if not self._adds_special_tokens:
            return _Prompt(text, bare, 0)
        if self._max_input_tokens is not None and len(ids) > self._max_input_tokens:
            ids = self._cut(ids, (), "right")
        return _Prompt(text, bare, len(ids) - (bool(ids) and ids[-1] in self._special_ids))

    def _find_prompt(self, name: str | None) -> _Prompt:
        if name is None:
            return NO_PROMPT  # also where the model's files name a default: none is applied that was not asked for
        if name not in self._prompts:
            known = ", ".join(self._prompts) or "none"
            raise InvalidRequestError(
                f"this model has no such prompt; it has: {known}", "unknown_prompt", "prompt_name"
            )
        return self._prompts[name]

    def _prompt_ids(self, prompted: str, prompt: _Prompt) -> list[int]:
        """Return the ids that are the prompt's alone; one that reaches into the text is the text's."""
        if not prompt.text:
            return []
        beginning = prompted[: len(prompt.text) + SHORT_CHARACTERS]
        encoding = self._tokenizer.encode(beginning, add_special_tokens=False)
        ends = (end for _, end in encoding.offsets)
        count = next((n for n, end in enumerate(ends) if end > len(prompt.text)), None)
        ids: list[int] = encoding.ids
        return ids[:count]

    def _check_range(self, ids: Sequence[int], index: int) -> None:
        try:
            array = np.fromiter(ids, np.int64, len(ids))
        except OverflowError:
            array = np.array([-1])
        if array.size and not 0 <= array.min() <= array.max() < self._vocabulary_size:
            param = f"input[{index}]"
            raise InvalidRequestError(
                f"{param} has a token id outside 0 to {self._vocabulary_size - 1}, the ids of this model",
                "invalid_token_id",
                param,
            )


def _pack(inputs: Sequence[Sequence[int]], prompt_length: int) -> TokenizedInputs:
    lengths = np.fromiter(map(len, inputs), np.int32, len(inputs))
    ids = np.fromiter(chain.from_iterable(inputs), np.int32, int(lengths.sum()))
    return TokenizedInputs(ids, lengths, prompt_length)
