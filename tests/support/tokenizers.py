"""Build and run tokenizers of small checkpoints. Ids are returned as lists."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.errors import TokenizationError
from serve_app.messages import TokenizedInputs
from serve_app.tokenization.tokenizer import Tokenizer, TruncateDirection
from tests.support.checkpoints import write_bert

PROMPTS = {"query": "query: ", "passage": "represent this passage:"}


def make(directory: Path, raw: tokenizers.Tokenizer | None = None, **changes: object) -> Tokenizer:
    """Return the tokenizer of a model that reads 32 tokens; `changes` override fields of its checkpoint."""
    write_bert(directory, tokenizer=raw, prompts=PROMPTS)
    return Tokenizer(replace(read_checkpoint(str(directory)), **changes))  # type: ignore[arg-type]


def rows(inputs: TokenizedInputs) -> list[list[int]]:
    """Split the buffer into one list of ids per input."""
    return [part.tolist() for part in np.split(inputs.ids, np.cumsum(inputs.lengths)[:-1])]


def encode(
    tokenizer: Tokenizer,
    *texts: str,
    prompt_name: str | None = None,
    truncate_direction: TruncateDirection = "right",
) -> list[list[int]]:
    """Tokenize texts, and truncate those that are too long."""
    prompt = tokenizer.find_prompt(prompt_name)
    return rows(
        tokenizer.encode_texts(
            texts, prompt=prompt, truncate=True, truncate_direction=truncate_direction
        )
    )


def refuse(tokenizer: Tokenizer, *texts: str) -> TokenizationError:
    """Return the error that tokenizing the texts without truncation raises."""
    with pytest.raises(TokenizationError) as caught:
        tokenizer.encode_texts(texts)
    return caught.value
