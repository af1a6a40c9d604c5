"""The JSON about models and the server: `/v1/models`, `/info`, `/health`."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from serve_app.schemas.base import Answer


class ModelCard(Answer):
    """A served name: OpenAI's four fields, and what this server knows beside them."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    embeds: Annotated[
        bool, Field(description="Whether `/v1/embeddings` takes it; if not it answers 424.")
    ]
    dimensions: int | None
    max_input_tokens: int | None
    prompts: Annotated[
        dict[str, str],
        Field(description="What `prompt_name` may be, and the text that it stands for."),
    ]


class ModelList(Answer):
    """The answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TeiInfo(Answer):
    """The answer of `GET /info`: the default model, in the words of text-embeddings-inference."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_input_length: int | None
    max_batch_tokens: int | None
    max_client_batch_size: int
    max_concurrent_requests: int | None
    auto_truncate: bool
    version: str


class Health(Answer):
    """The answer of `GET /health` and `GET /ready`."""

    status: Literal["ok"] = "ok"
