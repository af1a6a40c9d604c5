"""The handlers of the HTTP side: from a Starlette request to the service, and from its answer to bytes.

Knows nothing of Ray or torch.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from serve_app import __version__
from serve_app.api.error_responses import rate_limit_headers
from serve_app.api.middleware import record_of
from serve_app.api.request_body import collector_paused, read_body
from serve_app.config.http import HttpConfig
from serve_app.errors import UnavailableError
from serve_app.messages import EmbedResponse
from serve_app.observability.access_log import RequestRecord
from serve_app.observability.metrics import CONTENT_TYPE
from serve_app.schemas.embeddings import (
    EmbeddingRequest,
    Health,
    ModelCard,
    ModelList,
    TeiInfo,
    parse_request,
    read_priority,
)
from serve_app.service.embeddings import Service
from serve_app.service.postprocess import write_response, write_rows
from serve_app.service.registry import ServedModel

# Answers with more numbers than this are written in a thread: it takes some milliseconds.
_INLINE_NUMBERS = 300_000

Scrape = Callable[[], Awaitable[bytes]]
Writer = Callable[[EmbedResponse, EmbeddingRequest], bytes]


class Endpoints:
    """The handlers, and what they work with.

    Args:
        service: where embedding requests go.
        settings: limits and waits.
        scrape: gathers the metrics of all replicas as Prometheus text.
    """

    def __init__(
        self,
        service: Service,
        *,
        settings: HttpConfig,
        scrape: Scrape,
    ) -> None:
        self._service = service
        self._settings = settings
        self._scrape = scrape
        self._started = int(time.time())

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        return await self._embed(request, _whole_response)

    async def embed(self, request: Request) -> Response:
        """`POST /embed`, text-embeddings-inference's own route: nothing but the vectors."""
        return await self._embed(request, _bare_vectors)

    async def _embed(self, request: Request, write: Writer) -> Response:
        record = record_of(request.scope)
        record.limits = partial(rate_limit_headers, self._service.requests, None)
        with self._service.place() as hold:
            body = await read_body(
                request,
                hold=hold,
                max_bytes=self._settings.max_body_bytes,
                max_values=self._settings.max_client_batch_size + self._settings.max_request_tokens,
                timeout_s=self._settings.body_timeout_s,
            )
            with collector_paused():
                asked = parse_request(body, most_inputs=self._settings.max_client_batch_size)
            priority = read_priority(request.headers.get("x-priority"), name="x-priority")
            if "model" in request.path_params:  # Azure's deployments, and engines
                asked = asked.model_copy(update={"model": request.path_params["model"]})
            record.inputs = len(asked.items)
            model = self._service.models.find(asked.model)
            record.model = model.name
            if model.embedder is not None:
                tokens = model.embedder.backlog
                record.limits = partial(rate_limit_headers, self._service.requests, tokens)
            answer = await self._service.embed(
                asked, request_id=record.request_id, priority=priority
            )
            record.tokens = answer.prompt_tokens
            if answer.embeddings.size < _INLINE_NUMBERS:
                content = write(answer, asked)
            else:
                content = await asyncio.to_thread(write, answer, asked)
        return Response(
            content, media_type="application/json", headers=_timing_headers(answer, record)
        )

    async def info(self, _request: Request) -> Response:
        """`GET /info`: the default model, as text-embeddings-inference tells of its own."""
        model = self._service.models.first
        limits = model.tokenizer.max_input_tokens if model.tokenizer else None
        return _json(
            TeiInfo(
                model_id=model.name,
                model_sha=model.config.revision,
                model_dtype=model.config.dtype,
                model_type={"embedding": {}} if model.embedder else {},
                max_input_length=limits,
                max_batch_tokens=model.config.max_batch_tokens,
                max_client_batch_size=self._settings.max_client_batch_size,
                max_concurrent_requests=self._service.requests.limit,
                auto_truncate=model.config.truncate,
                version=__version__,
            )
        )

    async def models(self, _request: Request) -> Response:
        """`GET /v1/models`: every model under its name and under each of its aliases."""
        names = [(name, m) for m in self._service.models for name in (m.name, *m.config.aliases)]
        cards = [self._card(name, model) for name, model in names]
        return _json(ModelList(data=cards))

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{id}`."""
        name = request.path_params["id"]
        return _json(self._card(name, self._service.models.named(name)))

    def _card(self, name: str, model: ServedModel) -> ModelCard:
        tokenizer = model.tokenizer
        return ModelCard(
            id=name,
            created=self._started,
            owned_by=model.name.split("/")[0],
            embeds=model.embedder is not None,
            dimensions=model.dimensions,
            max_input_tokens=tokenizer.max_input_tokens if tokenizer else None,
            prompts=dict(tokenizer.prompts) if tokenizer else {},
        )

    async def health(self, _request: Request) -> Response:
        """`GET /health`: this process can answer."""
        return _json(Health())

    async def ready(self, _request: Request) -> Response:
        """`GET /ready`: every model has a replica that can embed, or starts one when it is asked."""
        names = await self._service.not_ready()
        if names:
            message = f"No replica can embed with: {', '.join(names)}."
            raise UnavailableError(
                message, "model_unavailable", retry_after_s=self._settings.retry_after_s
            )
        return _json(Health())

    async def metrics(self, _request: Request) -> Response:
        """`GET /metrics`: the series of all replicas, whichever answers."""
        return Response(await self._scrape(), media_type=CONTENT_TYPE)


def _whole_response(answer: EmbedResponse, asked: EmbeddingRequest) -> bytes:
    return write_response(
        answer.embeddings,
        encoding_format=asked.encoding_format or "float",
        model=answer.model,
        prompt_tokens=answer.prompt_tokens,
    )


def _bare_vectors(answer: EmbedResponse, asked: EmbeddingRequest) -> bytes:
    return write_rows(answer.embeddings, encoding_format=asked.encoding_format or "float")


def _timing_headers(answer: EmbedResponse, record: RequestRecord) -> dict[str, str]:
    headers = {
        "x-compute-tokens": str(answer.prompt_tokens),
        "x-total-time": _milliseconds(record.elapsed_s),
        "x-tokenization-time": _milliseconds(answer.tokenization_s),
        "x-queue-time": _milliseconds(answer.queue_s),
        "x-inference-time": _milliseconds(answer.inference_s),
    }
    if answer.truncated_inputs:
        headers["x-truncated-inputs"] = str(answer.truncated_inputs)
    return headers


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def _json(model: Health | ModelCard | ModelList | TeiInfo) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
