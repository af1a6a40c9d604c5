import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from serve_app.checkpoints.metadata import Checkpoint, read_checkpoint
from serve_app.errors import InvalidRequestError, ModelLoadError, TokenizationError
from serve_app.tokenization.tokenizer import Tokenizer, TruncateDirection
from tests.support.checkpoints import (
    LONG_TEXT,
    NASTY_TEXTS,
    byte_bpe,
    letters,
    unigram,
    wordpiece,
    write_bert,
)
from tests.support.tokenizers import PROMPTS, encode, make, refuse, rows

MAKERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "wordpiece": wordpiece,
    "byte_bpe": byte_bpe,
    "roberta": lambda: byte_bpe(roberta=True),
    "unigram": unigram,
}


@pytest.mark.parametrize("name", MAKERS)
def test_ids_equal_those_of_the_library(tmp_path: Path, name: str) -> None:
    raw = MAKERS[name]()
    tokenizer = make(tmp_path, raw, max_input_tokens=None)

    ids = encode(tokenizer, *NASTY_TEXTS, LONG_TEXT)

    assert ids == [raw.encode(text).ids for text in (*NASTY_TEXTS, LONG_TEXT)]


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("name", MAKERS)
def test_truncation_equals_that_of_the_library(
    tmp_path: Path, name: str, direction: TruncateDirection
) -> None:
    raw = MAKERS[name]()
    tokenizer = make(tmp_path, raw, max_input_tokens=9)

    ids = encode(tokenizer, *NASTY_TEXTS, LONG_TEXT, truncate_direction=direction)

    raw.enable_truncation(9, direction=direction)
    assert ids == [raw.encode(text).ids for text in (*NASTY_TEXTS, LONG_TEXT)]


def test_truncated_inputs_are_counted(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)

    result = tokenizer.encode_texts(
        [LONG_TEXT, "a fox", LONG_TEXT], truncate=True, truncate_direction="right"
    )

    assert result.truncated == 2
    assert result.lengths.tolist() == [32, 4, 32]
    assert result.ids.dtype == result.lengths.dtype == np.int32


def test_a_prompt_is_prepended_to_the_text(tmp_path: Path) -> None:
    raw = byte_bpe()
    tokenizer = make(tmp_path, raw)

    ids = encode(tokenizer, "the fox", prompt_name="query")

    assert ids == [raw.encode("query: the fox").ids]


@pytest.mark.parametrize("name", MAKERS)
def test_left_truncation_keeps_the_prompt(tmp_path: Path, name: str) -> None:
    raw = MAKERS[name]()
    tokenizer = make(tmp_path, raw)
    prompt = PROMPTS["passage"]
    whole = raw.encode(prompt + LONG_TEXT)
    specials = raw.encode("").ids
    special_tokens = 0 if whole.ids[0] != specials[0] else 1
    prompt_tokens = sum(end <= len(prompt) for _, end in whole.offsets[special_tokens:-1])

    (ids,) = encode(tokenizer, LONG_TEXT, prompt_name="passage", truncate_direction="left")

    kept = special_tokens + prompt_tokens
    assert prompt_tokens > 3
    assert ids == whole.ids[:kept] + whole.ids[-(32 - kept) :]


def test_a_token_across_prompt_and_text_belongs_to_the_text(tmp_path: Path) -> None:
    raw = byte_bpe()
    tokenizer = make(tmp_path, raw, max_input_tokens=8)
    prompt_ids = raw.encode("query:").ids[:-1]

    (ids,) = encode(tokenizer, LONG_TEXT, prompt_name="query", truncate_direction="left")

    assert raw.encode("query: the", add_special_tokens=False).tokens[-1] == "Ġthe"
    assert ids[: len(prompt_ids)] == prompt_ids
    assert ids[len(prompt_ids) :] == raw.encode(LONG_TEXT).ids[-(8 - len(prompt_ids)) :]


def test_a_prompt_that_is_too_long_is_truncated(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, max_input_tokens=4)

    ids = [
        encode(tokenizer, "fox", prompt_name="passage", truncate_direction=direction)
        for direction in ("right", "left")
    ]

    assert ids[0] == ids[1]
    assert len(ids[0][0]) == 4


@pytest.mark.parametrize("name", MAKERS)
def test_prompt_length_excludes_the_special_token_after_it(tmp_path: Path, name: str) -> None:
    """Pooling without the prompt skips [CLS] query : of [CLS] query : [SEP]."""
    raw = MAKERS[name]()
    tokenizer = make(tmp_path, raw)

    result = tokenizer.encode_texts(
        ["fox"], prompt=tokenizer.find_prompt("query"), truncate=False, truncate_direction="right"
    )

    assert result.prompt_length == len(raw.encode("query: ").ids) - 1


def test_prompt_length_is_whole_without_a_special_token(tmp_path: Path) -> None:
    raw = wordpiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)]
    )
    tokenizer = make(tmp_path, raw)

    result = tokenizer.encode_texts(
        ["fox"], prompt=tokenizer.find_prompt("query"), truncate=False, truncate_direction="right"
    )

    assert result.prompt_length == 3


def test_a_truncated_prompt_counts_all_but_its_last_token(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, max_input_tokens=4)

    result = tokenizer.encode_texts(
        ["fox"], prompt=tokenizer.find_prompt("passage"), truncate=True, truncate_direction="right"
    )

    assert result.prompt_length == 3


def test_the_error_for_a_too_long_input_has_openais_words(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    tokens = len(wordpiece().encode(LONG_TEXT).ids)

    error = refuse(tokenizer, "a fox", LONG_TEXT, LONG_TEXT)

    assert str(error).startswith(
        f"This model's maximum context length is 32 tokens, however you requested {tokens} tokens in input[1]."
    )
    assert (error.code, error.param) == ("context_length_exceeded", "input[1]")


def test_the_error_for_an_invalid_text_does_not_quote_it(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)

    error = refuse(tokenizer, "a fox", "the dog", "the secret \ud800")

    assert (error.code, error.param) == ("tokenization_error", "input[2]")
    assert "secret" not in str(error)


def test_an_input_may_have_no_tokens(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, letters(), adds_special_tokens=False)

    ids = encode(tokenizer, "日本", "the fox", "🙂")

    assert ids[0] == ids[2] == []
    assert len(ids[1]) == 2


def test_an_empty_list_gives_empty_buffers(tmp_path: Path) -> None:
    result = make(tmp_path).encode_texts([])

    assert len(result) == result.tokens == 0


def test_the_error_for_an_unknown_prompt_lists_the_prompts(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)

    with pytest.raises(InvalidRequestError, match="query, document, passage") as caught:
        encode(tokenizer, "fox", prompt_name="nope")

    assert (caught.value.code, caught.value.param) == ("unknown_prompt", "prompt_name")


def test_configured_prompts_override_the_models_own(tmp_path: Path) -> None:
    raw = wordpiece()
    checkpoint = read_checkpoint(str(write_bert(tmp_path, tokenizer=raw, prompts=PROMPTS)))

    tokenizer = Tokenizer(checkpoint, prompts={"query": "question: ", "new": "answer: "})

    assert list(tokenizer.prompts) == ["query", "document", "passage", "new"]
    assert encode(tokenizer, "fox", prompt_name="query") == [raw.encode("question: fox").ids]


@pytest.mark.parametrize(
    ("model", "configured", "effective"),
    [(32, 10, 10), (32, 64, 32), (None, 10, 10), (None, None, None)],
)
def test_the_smaller_token_limit_applies(
    tmp_path: Path, model: int | None, configured: int | None, effective: int | None
) -> None:
    write_bert(tmp_path)
    checkpoint = replace(read_checkpoint(str(tmp_path)), max_input_tokens=model)

    tokenizer = Tokenizer(checkpoint, max_input_tokens=configured)

    assert tokenizer.max_input_tokens == effective


def test_a_limit_without_room_for_text_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="limit of 2 tokens per input leaves no room"):
        make(tmp_path, max_input_tokens=2)


def test_model_ids_get_special_tokens_and_prompt(tmp_path: Path) -> None:
    raw = wordpiece()
    tokenizer = make(tmp_path, raw)
    inputs = [raw.encode(text, add_special_tokens=False).ids for text in ("the fox", "a dog")]

    result = tokenizer.encode_ids(
        inputs, prompt=tokenizer.find_prompt("query"), truncate=False, truncate_direction="right"
    )

    assert rows(result) == encode(tokenizer, "the fox", "a dog", prompt_name="query")
    assert result.prompt_length == 3


@pytest.mark.parametrize("direction", ["right", "left"])
def test_model_ids_are_truncated_like_text(tmp_path: Path, direction: TruncateDirection) -> None:
    raw = wordpiece()
    tokenizer = make(tmp_path, raw)
    ids = raw.encode(LONG_TEXT, add_special_tokens=False).ids

    result = tokenizer.encode_ids(
        [ids], prompt=tokenizer.find_prompt("query"), truncate=True, truncate_direction=direction
    )

    assert result.truncated == 1
    assert rows(result) == encode(
        tokenizer, LONG_TEXT, prompt_name="query", truncate_direction=direction
    )


def test_model_ids_that_are_too_long_are_rejected(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)

    with pytest.raises(TokenizationError, match=r"33 tokens in input\[0\]"):
        tokenizer.encode_ids([[5] * 31], truncate=False, truncate_direction="right")


@pytest.mark.parametrize("bad", [-1, 323, 2**31, 2**80])
def test_an_id_outside_the_vocabulary_is_rejected(tmp_path: Path, bad: int) -> None:
    tokenizer = make(tmp_path)
    assert tokenizer.vocabulary_size == 323

    with pytest.raises(InvalidRequestError, match="0 to 322") as caught:
        tokenizer.encode_ids([[0, 322], [7, bad]], truncate=True, truncate_direction="right")

    assert (caught.value.code, caught.value.param) == ("invalid_token_id", "input[1]")


def test_a_model_that_does_not_embed_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="because it is a test"):
        Tokenizer(Checkpoint(tmp_path, embeds=False, reason="because it is a test"))


def test_threads_can_share_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    texts = [*NASTY_TEXTS, LONG_TEXT] * 4
    expected = {
        side: encode(tokenizer, *texts, truncate_direction=side) for side in ("right", "left")
    }

    with ThreadPoolExecutor(8) as threads:
        sides: list[TruncateDirection] = ["right", "left"] * 20
        results = list(
            threads.map(
                lambda side: (side, encode(tokenizer, *texts, truncate_direction=side)), sides
            )
        )

    assert all(ids == expected[side] for side, ids in results)


@given(length=st.integers(0, 80), limit=st.integers(6, 40), left=st.booleans())
def test_a_truncated_input_has_full_length_and_keeps_one_side(
    tmp_path_factory: pytest.TempPathFactory, length: int, limit: int, *, left: bool
) -> None:
    tokenizer = shared(tmp_path_factory, limit)
    ids = [5 + n for n in range(length)]
    room = limit - 4  # [CLS] query : [SEP]

    result = tokenizer.encode_ids(
        [ids],
        prompt=tokenizer.find_prompt("query"),
        truncate=True,
        truncate_direction="left" if left else "right",
    )

    (row,) = rows(result)
    assert row[3:-1] == (ids[max(length - room, 0) :] if left else ids[:room])
    assert result.truncated == (1 if length > room else 0)


SHARED: dict[int, Tokenizer] = {}


def shared(factory: pytest.TempPathFactory, limit: int) -> Tokenizer:
    """Return the tokenizer with this limit; all examples share it."""
    if limit not in SHARED:
        SHARED[limit] = make(factory.mktemp("model"), max_input_tokens=limit)
    return SHARED[limit]


def test_the_tokenizer_imports_no_torch_transformers_or_ray() -> None:
    code = "import sys, serve_app.tokenization.tokenizer; print({'torch', 'transformers', 'ray'} & set(sys.modules))"

    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )

    assert output.stdout.strip() == "set()"
