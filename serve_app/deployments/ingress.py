"""The ingress deployment: the entry point for HTTP requests and `DeploymentHandle` callers.

The ingress is a thin wrapper around the service, the HTTP application and one client per model.
Texts are tokenized in the ingress process, which never imports torch.
"""

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from ray import serve
from starlette.types import ASGIApp

from serve_app.api.app import build_asgi_app
from serve_app.api.auth import ApiKeys
from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.config.http import HttpConfig
from serve_app.config.models import ModelConfig, ServerConfig
from serve_app.deployments.broadcast import ask_all
from serve_app.deployments.running_replicas import connect, running_replicas
from serve_app.dispatch.calls import ReplicaCaller
from serve_app.dispatch.client import ClientSettings, ModelClient
from serve_app.dispatch.drain_rate import DrainRate
from serve_app.dispatch.refusals import Refusals
from serve_app.messages import EmbedResponse
from serve_app.observability.access_log import hide_expected_tracebacks
from serve_app.observability.metrics import Metrics, Snapshot, exposition
from serve_app.schemas.embeddings import InputType, Priority, build_request, read_priority
from serve_app.service.embeddings import EmbeddingService
from serve_app.service.registry import EmbeddingModel, ServedModel
from serve_app.service.requests import Requests
from serve_app.tokenization.openai_token_ids import Cl100k
from serve_app.tokenization.tokenizer import Tokenizer

# Token budget of the first calls if `max_batch_tokens` is not set. Once replicas have reported their
# budgets, the lowest of them applies.
_CHUNK_TOKENS = 2048


class Ingress:
    """Serves embeddings over HTTP and through Ray Serve handles.

    Args:
        config: all settings.
        handles: the deployment handle of each embedding model, by model name.
    """

    def __init__(self, config: ServerConfig, handles: Mapping[str, Any]) -> None:
        self._config = config
        self._handles = handles
        self._metrics = Metrics()
        self._clients: dict[str, ModelClient] = {}
        models = [self._served(model) for model in config.models]
        hide_expected_tracebacks()
        reads_cl100k = any(
            model.task == "embed" and model.config.token_ids == "cl100k" for model in models
        )
        self._keys = ApiKeys(config.http.api_keys_file)
        self._service = EmbeddingService(
            models,
            cl100k=Cl100k() if reads_cl100k else None,
            limits=config.http,
            metrics=self._metrics,
        )
        self._requests = Requests(config.http, metrics=self._metrics)
        context = serve.get_replica_context()
        self._name = context.replica_id.unique_id
        self._peers = serve.get_deployment_handle(
            context.deployment, context.app_name, _check_exists=False
        )

    def _served(self, model: ModelConfig) -> ServedModel:
        """Return the model with the objects that serve it, and publish it in the metrics."""
        checkpoint = read_checkpoint(model.source, revision=model.revision)
        self._metrics.model_served(
            model=model.name,
            embeds=checkpoint.embeds,
            dtype=model.dtype,
            dimensions=checkpoint.dimensions,
        )
        if not checkpoint.embeds:
            return ServedModel(model, checkpoint.reason)
        assert checkpoint.dimensions is not None, "an embedding model has dimensions"
        client = _client(self._handles[model.name], model, self._config.http, self._metrics)
        self._clients[model.name] = client
        tokenizer = Tokenizer(
            checkpoint, max_input_tokens=model.max_input_tokens, prompts=model.prompts
        )
        return EmbeddingModel(model, checkpoint.reason, checkpoint.dimensions, tokenizer, client)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the HTTP application. Ray Serve calls this after the constructor."""
        for handle in self._handles.values():  # here, because this runs on the event loop
            connect(handle)
        return build_asgi_app(
            self._service,
            self._requests,
            settings=self._config.http,
            keys=self._keys,
            scrape=self._scrape,
            adds_request_id=False,  # Ray Serve adds the x-request-id header to every response
        )

    async def embed(  # noqa: PLR0913  # a request's fields
        self,
        input: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],  # noqa: A002  # the field
        *,
        model: str | None = None,
        prompt_name: str | None = None,
        input_type: InputType | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        truncate: bool | None = None,
        truncate_direction: Literal["right", "left"] = "right",
        priority: Priority | None = None,
    ) -> EmbedResponse:
        """Embed inputs for a Python caller: `await handle.embed.remote(["a text"])`.

        The same checks and limits apply as over HTTP.

        Args:
            input: a text, a list of texts, a list of token ids, or a list of such lists. One list
                of token ids is one input.
            model: a served name or alias; None for the first model.
            prompt_name: the name of one of the model's prompts, which is prepended to each input.
            input_type: the kind of input, such as `query` or `document`. It selects the model's
                prompt for that kind.
            dimensions: the number of components to keep from the start of each vector; None for
                all.
            normalize: whether to scale the vectors to unit length.
            truncate: whether to truncate inputs that are too long; None for the model's `truncate`
                setting.
            truncate_direction: the side from which tokens are removed.
            priority: `interactive` or `bulk`. Interactive requests go first. If None, a request
                with at most `interactive_tokens` tokens is interactive.

        Returns:
            The vectors as one float32 array, with token counts and timings.

        Raises:
            ServiceError: the same errors as in the HTTP API, with `status`, `code`, `param` and
                `message`.
        """
        with self._requests.begin(uuid.uuid4().hex, method="CALL", route="embed") as scope:
            try:
                scope.admit()
                request = build_request(
                    input=input,
                    model=model,
                    prompt_name=prompt_name,
                    input_type=input_type,
                    dimensions=dimensions,
                    normalize=normalize,
                    truncate=truncate,
                    truncate_direction=truncate_direction,
                )
                response = await self._service.embed(
                    request, scope.record, priority=read_priority(priority, name="priority")
                )
            except Exception as error:
                raise scope.fail(error) from None
            scope.record.status = 200
            return response

    async def snapshot(self) -> tuple[str, Snapshot]:
        """Return this replica's id and metrics, for a scrape that any ingress replica answers."""
        return self._name, self._metrics.snapshot()

    async def _scrape(self) -> bytes:
        answers = await ask_all(self._peers, "snapshot", timeout_s=3)
        ingresses = dict(answer for answer in answers if answer is not None)
        # The broadcast may not include this replica yet.
        ingresses[self._name] = self._metrics.snapshot()
        models = {name: client.states() for name, client in self._clients.items()}
        return exposition(ingresses, models)


def _client(handle: Any, model: ModelConfig, http: HttpConfig, metrics: Metrics) -> ModelClient:
    drain_rate = DrainRate(unknown_s=http.retry_after_s)
    refusals = Refusals(
        model.name, drain_rate=drain_rate, retry_after_s=http.retry_after_s, metrics=metrics
    )
    settings = ClientSettings(
        chunk_tokens=model.max_batch_tokens or _CHUNK_TOKENS,
        max_queued_tokens=model.max_queued_tokens,
        replica_wait_timeout_s=http.replica_wait_timeout_s,
        bulk_share=model.bulk_share,
        scales_to_zero=model.deployment.scales_to_zero,
    )
    client = ModelClient(
        ReplicaCaller(handle, model.name, refusals=refusals, metrics=metrics),
        settings,
        replicas=partial(running_replicas, handle),
        drain_rate=drain_rate,
        refusals=refusals,
    )
    metrics.watch_queue(
        model=model.name,
        pending=lambda: drain_rate.pending,
        queued=lambda: client.queued_tokens,
    )
    return client
