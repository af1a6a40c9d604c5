"""The JSON schema of a request, made exact: what none of the served models takes, it does not allow.

A client or a test that is generated from the document then sends nothing that can only be refused. A model's name
stays a string, so that what is generated from one server's document can call another.
"""

from collections.abc import Sequence
from typing import Any

from serve_app.schemas.embeddings import EmbeddingRequest
from serve_app.service.registry import ServedModel
from serve_app.tokenization.openai_token_ids import LAST_ORDINARY_ID

Json = dict[str, Any]

_INPUTS = ("input", "inputs")
_DIRECTIONS = ("truncate_direction", "truncation_direction")
_TEXT: Json = {"type": "string", "minLength": 1}
_NULL: Json = {"type": "null"}


def request_schema(models: Sequence[ServedModel], *, most_inputs: int) -> Json:
    """Return the schema of `EmbeddingRequest` for some models.

    Args:
        models: what is served.
        most_inputs: how many inputs a request may have.
    """
    schema = EmbeddingRequest.model_json_schema()
    fields = schema["properties"]
    for name in _INPUTS:
        fields[name]["anyOf"] = [*_inputs(models, most_inputs), _NULL]
    fields["model"]["examples"] = names(models)
    native = [model.dimensions for model in models if model.dimensions]
    fields["dimensions"]["anyOf"][0]["maximum"] = max(native, default=1)
    prompts = sorted({name for m in models if m.tokenizer for name in m.tokenizer.prompts})
    fields["prompt_name"]["anyOf"] = [{"enum": prompts}, _NULL] if prompts else [_NULL]
    # Two names of one field, of which one is sent; and without inputs there is nothing to do.
    schema["oneOf"] = [_only(sent, other) for sent, other in (_INPUTS, _INPUTS[::-1])]
    schema["anyOf"] = [_absent(name) for name in _DIRECTIONS]
    return schema


def names(models: Sequence[ServedModel]) -> list[str]:
    """Return the names and aliases of the models that embed."""
    embedding = [model for model in models if model.embedder is not None]
    return [name for model in embedding for name in (model.name, *model.config.aliases)]


def _inputs(models: Sequence[ServedModel], most: int) -> list[Json]:
    kinds = [_TEXT, {**_list_of(_TEXT), "maxItems": most}]
    last = max((_last_id(model) for model in models), default=-1)
    if last >= 0:
        ids = _list_of({"type": "integer", "minimum": 0, "maximum": last})
        kinds += [ids, {**_list_of(ids), "maxItems": most}]
    return kinds


def _last_id(model: ServedModel) -> int:
    """Return the largest token id that a model takes; -1 for one that takes none."""
    if model.tokenizer is None or model.config.token_ids == "reject":
        return -1
    if model.config.token_ids == "cl100k":
        return LAST_ORDINARY_ID
    return model.tokenizer.vocabulary_size - 1


def _list_of(item: Json) -> Json:
    return {"type": "array", "minItems": 1, "items": item}


def _absent(name: str) -> Json:
    return {"properties": {name: _NULL}}


def _only(sent: str, other: str) -> Json:
    return {"required": [sent], "properties": {sent: {"not": _NULL}, other: _NULL}}
