"""The routes that describe models: `GET /v1/models`, and text-embeddings-inference's `GET /info`."""

import time

from starlette.responses import Response

from serve_app import __version__
from serve_app.api.request import ApiRequest
from serve_app.api.serialization import json_response
from serve_app.config.http import HttpConfig
from serve_app.schemas.models import ModelCard, ModelList, TeiInfo
from serve_app.service.registry import EmbeddingModel, ModelRegistry, ServedModel


class ModelRoutes:
    """The handlers of the model routes.

    Args:
        models: the models to describe.
        settings: the limits that `/info` reports.
    """

    def __init__(self, models: ModelRegistry, *, settings: HttpConfig) -> None:
        self._models = models
        self._settings = settings
        self._started = int(time.time())

    async def models(self, _request: ApiRequest) -> Response:
        """`GET /v1/models`: one entry for each model name and each alias."""
        names = [(name, m) for m in self._models for name in (m.name, *m.config.aliases)]
        cards = [self._card(name, model) for name, model in names]
        return json_response(ModelList(data=cards))

    async def model(self, request: ApiRequest) -> Response:
        """`GET /v1/models/{id}`."""
        name = request.path_params["id"]
        return json_response(self._card(name, self._models.get(name)))

    def _card(self, name: str, model: ServedModel) -> ModelCard:
        card = ModelCard(
            id=name,
            created=self._started,
            owned_by=model.name.split("/")[0],
            embeds=model.task == "embed",
        )
        if not isinstance(model, EmbeddingModel):
            return card
        return card.model_copy(
            update={
                "dimensions": model.dimensions,
                "max_input_tokens": model.tokenizer.max_input_tokens,
                "prompts": dict(model.tokenizer.prompts),
            }
        )

    async def info(self, _request: ApiRequest) -> Response:
        """`GET /info`: the default model, in the format of text-embeddings-inference."""
        model = self._models.first
        embedding = model if isinstance(model, EmbeddingModel) else None
        return json_response(
            TeiInfo(
                model_id=model.name,
                model_sha=model.config.revision,
                model_dtype=model.config.dtype,
                model_type={"embedding": {}} if embedding else {},
                max_input_length=embedding.tokenizer.max_input_tokens if embedding else None,
                max_batch_tokens=model.config.max_batch_tokens,
                max_client_batch_size=self._settings.max_client_batch_size,
                max_concurrent_requests=self._settings.max_concurrent_requests,
                auto_truncate=model.config.truncate,
                version=__version__,
            )
        )
