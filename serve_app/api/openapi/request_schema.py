"""The exact JSON schema of a request: it allows only what at least one of the served models accepts.

Clients and tests that are generated from the document therefore send only valid requests. `model` is an exception: it
allows any string, so that a client generated from one server's document can call another server.
"""

from collections.abc import Sequence
from typing import Any

from serve_app.schemas.embeddings import EmbeddingRequest
from serve_app.service.registry import EmbeddingModel
from serve_app.tokenization.openai_token_ids import LAST_ORDINARY_ID

Json = dict[str, Any]

_INPUTS = ("input", "inputs")
_DIRECTIONS = ("truncate_direction", "truncation_direction")
_TEXT: Json = {"type": "string", "minLength": 1}
_NULL: Json = {"type": "null"}


def request_schema(models: Sequence[EmbeddingModel], *, most_inputs: int) -> Json:
    """Return the JSON schema of `EmbeddingRequest` for the served models.

    Args:
        models: the served embedding models.
        most_inputs: the maximum number of inputs per request.
    """
    schema = EmbeddingRequest.model_json_schema()
    fields = schema["properties"]
    for name in _INPUTS:
        fields[name]["anyOf"] = [*_inputs(models, most_inputs), _NULL]
    fields["model"]["examples"] = names(models)
    native = [model.dimensions for model in models]
    fields["dimensions"]["anyOf"][0]["maximum"] = max(native, default=1)
    prompts = sorted({name for m in models for name in m.tokenizer.prompts})
    fields["prompt_name"]["anyOf"] = [{"enum": prompts}, _NULL] if prompts else [_NULL]
    # A request contains `input` or `inputs`, not both, and at most one of the two direction fields.
    schema["oneOf"] = [_exactly_one("input", "inputs"), _exactly_one("inputs", "input")]
    schema["anyOf"] = [_absent(name) for name in _DIRECTIONS]
    return schema


def names(models: Sequence[EmbeddingModel]) -> list[str]:
    """Return the names and aliases of the models."""
    return [name for model in models for name in (model.name, *model.config.aliases)]


def _inputs(models: Sequence[EmbeddingModel], most: int) -> list[Json]:
    kinds = [_TEXT, {**_list_of(_TEXT), "maxItems": most}]
    last = max((_last_id(model) for model in models), default=-1)
    if last >= 0:
        ids = _list_of({"type": "integer", "minimum": 0, "maximum": last})
        kinds += [ids, {**_list_of(ids), "maxItems": most}]
    return kinds


def _last_id(model: EmbeddingModel) -> int:
    """Return the largest token id that a model accepts; -1 if the model accepts no token ids."""
    if model.config.token_ids == "reject":
        return -1
    if model.config.token_ids == "cl100k":
        return LAST_ORDINARY_ID
    return model.tokenizer.vocabulary_size - 1


def _list_of(item: Json) -> Json:
    return {"type": "array", "minItems": 1, "items": item}


def _absent(name: str) -> Json:
    return {"properties": {name: _NULL}}


def _exactly_one(name: str, other: str) -> Json:
    return {"required": [name], "properties": {name: {"not": _NULL}, other: _NULL}}
