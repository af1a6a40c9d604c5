from collections.abc import Sequence
from typing import Any

import jsonschema_rs
import pytest

from serve_app.api.openapi.request_schema import request_schema
from serve_app.service.registry import EmbeddingModel, ModelRegistry
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import (
    ALIAS,
    DIMENSIONS,
    MODEL,
    WORDS,
    FakeEmbedder,
    build_application,
    served_models,
)

pytestmark = pytest.mark.anyio

LIMIT = 3


def embedding(tokenizer: Tokenizer, **model: Any) -> Sequence[EmbeddingModel]:
    """Return the embedding model with these settings."""
    return ModelRegistry(served_models(tokenizer, FakeEmbedder(), model)).embedding


ACCEPTED: tuple[dict[str, Any], ...] = (
    {"input": "a"},
    {"inputs": ["a", "b"]},
    {"input": [4, 5]},
    {"input": [[4], [len(WORDS) - 1]]},
    {"input": [4.0, 5], "dimensions": 2.0},
    {"input": [[4.0]]},
    {"input": "a", "inputs": None, "model": ALIAS, "unknown": {}},
    {"input": "a", "dimensions": DIMENSIONS, "prompt_name": "query", "truncate_direction": "left"},
    {"input": "a", "dimensions": None, "prompt_name": None, "truncation_direction": None},
)
REJECTED: tuple[Any, ...] = (
    {},
    [],
    {"input": None},
    {"input": None, "inputs": None},
    {"input": "a", "inputs": "b"},
    {"input": ""},
    {"input": []},
    {"input": ["a", ""]},
    {"input": ["a", 1]},
    {"input": ["a"] * (LIMIT + 1)},
    {"input": [[4]] * (LIMIT + 1)},
    {"input": [len(WORDS)]},
    {"input": [-1]},
    {"input": [True]},
    {"input": [4.5]},
    {"input": [[4.5]]},
    {"input": "a", "dimensions": 2.5},
    {"input": [[]]},
    {"input": "a", "dimensions": 0},
    {"input": "a", "dimensions": DIMENSIONS + 1},
    {"input": "a", "dimensions": "8"},
    {"input": "a", "prompt_name": "passage"},
    {"input": "a", "input_type": "other"},
    {"input": "a", "encoding_format": "hex"},
    {"input": "a", "normalize": 1},
    {"input": "a", "truncate_direction": "left", "truncation_direction": "right"},
)


@pytest.mark.parametrize("body", [*ACCEPTED, *REJECTED], ids=str)
async def test_the_schema_and_the_server_agree_on_valid_bodies(
    tokenizer: Tokenizer, body: Any
) -> None:
    schema = request_schema(embedding(tokenizer), most_inputs=LIMIT)
    app = build_application(tokenizer, http={"max_client_batch_size": LIMIT})

    async with app.client() as client:
        answer = await client.post("/v1/embeddings", json=body)

    assert jsonschema_rs.is_valid(schema, body) == (body in ACCEPTED)
    assert (answer.status_code == 200) == (body in ACCEPTED), answer.text


@pytest.mark.parametrize(
    ("token_ids", "largest"), [("reject", None), ("model", len(WORDS) - 1), ("cl100k", 100_255)]
)
def test_the_schema_limits_token_ids_by_the_setting(
    tokenizer: Tokenizer, token_ids: str, largest: int | None
) -> None:
    models = embedding(tokenizer, token_ids=token_ids)
    schema = request_schema(models, most_inputs=LIMIT)

    def allows(number: int) -> bool:
        return jsonschema_rs.is_valid(schema, {"input": [number]})

    assert allows(0) == (largest is not None)
    if largest is not None:
        assert allows(largest)
        assert not allows(largest + 1)


def test_without_prompts_the_schema_allows_no_prompt_name() -> None:
    schema = request_schema([], most_inputs=LIMIT)

    assert jsonschema_rs.is_valid(schema, {"input": "a", "prompt_name": None})
    assert not jsonschema_rs.is_valid(schema, {"input": "a", "prompt_name": "query"})


def test_model_names_are_examples_and_not_an_enum(tokenizer: Tokenizer) -> None:
    """A client generated from one server's document can call another server."""
    schema = request_schema(embedding(tokenizer), most_inputs=LIMIT)

    assert schema["properties"]["model"]["examples"] == [MODEL, ALIAS]  # without the ranker
    assert jsonschema_rs.is_valid(schema, {"input": "a", "model": "another/model"})
