"""The responses of `/v1/models`, `/info` and `/health`."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, RootModel

from serve_app.schemas.base import Answer


class ModelCard(Answer):
    """A served model: OpenAI's four fields, and this server's additional fields."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    embeds: Annotated[
        bool,
        Field(
            description="Whether the model is an embedding model. If not, `/v1/embeddings` returns 424."
        ),
    ]
    dimensions: int | None = None
    max_input_tokens: int | None = None
    prompts: dict[str, str] = Field(
        default_factory=dict,
        description="The values of `prompt_name`, each with the text of its prompt.",
    )


class ModelList(Answer):
    """The response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TeiInfo(Answer):
    """The response of `GET /info`: the default model, with the fields of text-embeddings-inference."""

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


class TeiEmbeddings(RootModel[list[list[float] | str]]):
    """The response of `POST /embed`: one vector per input, as numbers or as little-endian float32 in base64."""


class Health(Answer):
    """The response of `GET /health` and `GET /ready`."""

    status: Literal["ok"] = "ok"
