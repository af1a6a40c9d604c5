"""Vectors match those of `SentenceTransformer.encode` to within 1e-5 in float32."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from serve_app.messages import TokenizedInputs, Vectors
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.checkpoints import CORPUS, LONG_TEXT
from tests.support.models import READABLE, TEXTS, TORCH_ONLY, Loaded, TinyModels, assert_same
from tests.support.tiny_models import MAX_SEQ_LENGTH, MODELS, PROMPTS

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_texts_have_the_same_vectors(model: Loaded) -> None:
    assert_same(model.embed(TEXTS), model.expect(TEXTS))


@pytest.mark.parametrize("prompt_name", ["document", *PROMPTS])
def test_a_prompt_has_the_same_effect(model: Loaded, prompt_name: str) -> None:
    ours = model.embed(TEXTS, prompt_name=prompt_name)

    assert_same(ours, model.expect(TEXTS, prompt_name=prompt_name))


def test_a_prompt_changes_the_vectors(model: Loaded) -> None:
    """The test above would pass if no prompt were ever applied."""
    without = model.embed(["the fox"], prompt_name="document")

    assert np.abs(model.embed(["the fox"], prompt_name="query") - without).max() > 1e-3


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"default-prompt"} - TORCH_ONLY))
def test_a_text_truncated_on_the_left_has_the_same_vector(
    tiny: TinyModels, name: str, engine: str
) -> None:
    model = tiny(name, engine=engine)
    texts = [*TEXTS, LONG_TEXT + " and more"]

    ours = model.embed(texts, truncate_direction="left")

    with truncation_side(model.reference.tokenizer, "left"):
        theirs = model.expect(texts)
    assert_same(ours, theirs)
    assert not np.allclose(ours[-1], model.embed(texts)[-1], atol=1e-3)


@pytest.mark.parametrize("name", ["mean", "no-prompt-mean", "roberta", "xlm-roberta", "lasttoken"])
def test_a_text_truncated_on_the_left_keeps_its_prompt(
    tiny: TinyModels, name: str, engine: str
) -> None:
    model = tiny(name, engine=engine)
    text, tail = text_and_tail(model, prompt_name="query")

    ours = model.embed([text], prompt_name="query", truncate_direction="left")

    assert_same(ours, model.expect([tail], prompt_name="query"))
    assert not np.allclose(ours, model.embed([text], prompt_name="query"), atol=1e-3)


@pytest.mark.parametrize("name", ["cls-normalize", "dense-normalize", "max", "static-normalize"])
@pytest.mark.parametrize("dimensions", [None, 5])
def test_dimensions_and_unit_length_use_the_raw_vectors(
    tiny: TinyModels, name: str, dimensions: int | None
) -> None:
    model = tiny(name)
    whole = SentenceTransformer(str(model.directory), device="cpu", truncate_dim=dimensions)

    cut = model.embed(READABLE)[:, :dimensions]

    assert_same(
        cut / np.linalg.norm(cut, axis=1, keepdims=True),
        whole.encode(READABLE, normalize_embeddings=True),
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_batch_gives_the_same_vectors(
    tiny: TinyModels, engine: str, data: st.DataObject
) -> None:
    names = ["mean-normalize", "no-prompt-mean", "lasttoken"]
    names += ["static"] if engine == "torch" else []
    model = tiny(data.draw(st.sampled_from(names)), engine=engine, threads=2)
    items = st.lists(st.integers(0, len(TEXTS) - 1), max_size=6)
    chunks = data.draw(
        st.lists(st.tuples(st.sampled_from(["document", *PROMPTS]), items), max_size=4)
    )
    budget = data.draw(st.integers(1, 200))

    encoded = model.encoder.encode(
        [ids_of(model, name, indices) for name, indices in chunks], max_batch_tokens=budget
    )

    expected = [expected_rows(model, name)[index] for name, indices in chunks for index in indices]
    assert encoded.failures == ()
    assert len(encoded.vectors) == len(encoded.padded_tokens) == len(expected)
    if expected:
        assert_same(encoded.vectors, np.stack(expected))


def test_the_default_model_has_the_published_weights(minilm: Loaded) -> None:
    weights = (minilm.directory / "model.safetensors").read_bytes()

    assert hashlib.sha256(weights).hexdigest() == MINILM_SHA256


@pytest.mark.parametrize("prompt_name", [None, "query"])
def test_the_default_model_gives_the_same_vectors(minilm: Loaded, prompt_name: str | None) -> None:
    assert minilm.tokenizer.max_input_tokens == 256
    texts = [*TEXTS, LONG_TEXT * 3, *(f"a sentence of its own, number {n}" for n in range(20))]

    ours = minilm.embed(texts, prompt_name=prompt_name)

    assert_same(ours, minilm.expect(texts, prompt_name=prompt_name))


@contextmanager
def truncation_side(tokenizer: Any, side: str) -> Iterator[None]:
    """Make sentence-transformers' tokenizer truncate on this side."""
    tokenizer.truncation_side = side
    try:
        yield
    finally:
        tokenizer.truncation_side = "right"


def text_and_tail(model: Loaded, *, prompt_name: str) -> tuple[str, str]:
    """Return a text that is too long, and its tail that exactly fits the model after the prompt."""
    words = CORPUS[0].replace(",", "").split() * 4
    unlimited = Tokenizer(replace(model.checkpoint, max_input_tokens=None))
    pairs = [(words[:end], words[start:end]) for end in range(60, 70) for start in range(30, end)]
    tails = unlimited.encode_texts(
        [" ".join(tail) for _, tail in pairs],
        prompt=unlimited.find_prompt(prompt_name),
        truncate=False,
        truncate_direction="right",
    )
    text, tail = pairs[tails.lengths.tolist().index(MAX_SEQ_LENGTH)]
    return " ".join(text), " ".join(tail)


def ids_of(model: Loaded, prompt_name: str, indices: list[int]) -> TokenizedInputs:
    """Tokenize the texts with these indices."""
    return model.tokenizer.encode_texts(
        [TEXTS[index] for index in indices],
        prompt=model.tokenizer.find_prompt(prompt_name),
        truncate=True,
        truncate_direction="right",
    )


@cache
def expected_rows(model: Loaded, prompt_name: str) -> Vectors:
    """Return sentence-transformers' vectors of all texts; cached."""
    return model.expect(TEXTS, prompt_name=prompt_name)
