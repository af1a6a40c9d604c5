from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.models import ModelConfig
from serve_app.errors import ModelNotFoundError
from serve_app.schemas.embeddings import InputType
from serve_app.service.registry import ModelRegistry, ServedModel
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import ALIAS, MODEL, RANKER, FakeEmbedder, served_models

MARKER = "xyzzy"
TAGGED = "tiny:latest"
INPUT_TYPES = get_args(InputType)


def registry(*models: tuple[str, Sequence[str]]) -> ModelRegistry:
    """Return a registry of models, given as names with their aliases."""
    return ModelRegistry(
        [
            ServedModel(
                ModelConfig(name=name, source="-", aliases=tuple(aliases)), "a test says so"
            )
            for name, aliases in models
        ]
    )


MODELS = registry((MODEL, [ALIAS, TAGGED]), (RANKER, []))


def refuse(name: str) -> ModelNotFoundError:
    """Return the error for a name that no model has."""
    with pytest.raises(ModelNotFoundError) as caught:
        MODELS.resolve(name)
    return caught.value


def test_only_embedding_models_have_that_task(tokenizer: Tokenizer) -> None:
    models = ModelRegistry(served_models(tokenizer, FakeEmbedder()))

    assert [model.name for model in models.embedding] == [MODEL]
    assert [model.task for model in models] == ["embed", "none"]


def test_models_are_listed_in_the_order_of_the_config() -> None:
    assert [model.name for model in MODELS] == [MODEL, RANKER]
    assert MODELS.first.name == MODEL


@pytest.mark.parametrize("name", [None, "", "null", MODEL, ALIAS])
def test_the_default_model_has_names_and_needs_none(name: str | None) -> None:
    model, input_type = MODELS.resolve(name)

    assert (model.name, input_type) == (MODEL, None)


@pytest.mark.parametrize("name", ["null", "", "acme", "ACME/TINY"])
def test_get_accepts_only_names_and_aliases(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        MODELS.get(name)


@pytest.mark.parametrize(
    ("name", "expected"), [(MODEL, MODEL), (ALIAS, MODEL), (TAGGED, MODEL), (RANKER, RANKER)]
)
def test_a_name_or_an_alias_selects_its_model(name: str, expected: str) -> None:
    assert MODELS.resolve(name) == (MODELS.get(name), None)
    assert MODELS.get(name).name == expected


@pytest.mark.parametrize("name", [f"{MODEL}:", f"{MODEL}:other", f"{MODEL}:query:query", ":query"])
def test_an_unknown_suffix_is_model_not_found(name: str) -> None:
    refuse(name)


def test_the_error_for_an_unknown_name_lists_every_name() -> None:
    error = refuse(MARKER)

    assert error.message == (
        f"The model does not exist. Available models: {MODEL}, {ALIAS}, {TAGGED}, {RANKER}."
    )
    assert (error.code, error.param) == ("model_not_found", "model")


def test_the_error_for_an_unknown_suffix_lists_the_input_types() -> None:
    error = refuse(f"{ALIAS}:{MARKER}")

    assert error.message == (
        "The suffix of a model name must be an input type: one of "
        "query, document, search_query, search_document, passage, classification, clustering."
    )
    assert (error.code, error.param) == ("model_not_found", "model")


# Input types as suffixes.

names = st.sampled_from([MODEL, ALIAS, TAGGED, RANKER])


@given(names, st.sampled_from(INPUT_TYPES))
def test_every_name_takes_every_input_type_as_a_suffix(name: str, input_type: InputType) -> None:
    sent = f"{name}:{input_type}"

    assert MODELS.get(sent) is MODELS.get(name)
    assert MODELS.resolve(sent) == (MODELS.get(name), input_type)


def test_a_model_s_whole_name_precedes_a_suffix() -> None:
    models = registry((MODEL, []), (f"{MODEL}:query", ["b:document"]))

    for name in (f"{MODEL}:query", "b:document"):
        assert models.resolve(name) == (models.get(f"{MODEL}:query"), None)
    assert models.get(f"{MODEL}:document").name == MODEL
    assert models.resolve(f"{MODEL}:query:query")[1] == "query"


parts = st.sampled_from(["", "query", "passage", "latest", "nobody", "tiny", MODEL, RANKER])


@given(st.lists(parts, min_size=1, max_size=4).map(":".join))
def test_a_name_is_known_alone_or_with_one_input_type(name: str) -> None:
    known = {MODEL, ALIAS, TAGGED, RANKER}
    accepted = known | {f"{one}:{input_type}" for one in known for input_type in INPUT_TYPES}

    try:
        MODELS.get(name)
        is_known = True
    except ModelNotFoundError:
        is_known = False

    assert is_known == (name in accepted)
