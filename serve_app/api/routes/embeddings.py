"""The routes that embed: `POST /v1/embeddings` and its aliases, and text-embeddings-inference's `POST /embed`."""

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.middleware import record_of
from serve_app.api.ratelimit import rate_limit_headers
from serve_app.api.request_body import collector_paused, read_body
from serve_app.api.serialization import write_response, write_rows
from serve_app.config.http import HttpConfig
from serve_app.messages import EmbedResponse
from serve_app.observability.access_log import RequestRecord
from serve_app.schemas.embeddings import EmbeddingRequest, parse_request, read_priority
from serve_app.service.embeddings import Service

# Answers with more numbers than this are written in a thread: it takes some milliseconds.
_INLINE_NUMBERS = 300_000

Writer = Callable[[EmbedResponse, EmbeddingRequest], bytes]


class EmbeddingRoutes:
    """The handlers, and what they work with.

    Args:
        service: where embedding requests go.
        settings: limits of request bodies.
    """

    def __init__(self, service: Service, *, settings: HttpConfig) -> None:
        self._service = service
        self._settings = settings

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        return await self._embed(request, _whole_response)

    async def embed(self, request: Request) -> Response:
        """`POST /embed`, text-embeddings-inference's own route: nothing but the vectors."""
        return await self._embed(request, _bare_vectors)

    async def _embed(self, request: Request, write: Writer) -> Response:
        record = record_of(request.scope)
        record.limits = partial(rate_limit_headers, self._service.requests, None)
        with self._service.admit() as reserve_bytes:
            body = await read_body(
                request,
                reserve_bytes=reserve_bytes,
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
            model = self._service.models.resolve(asked.model)
            record.model = model.name
            if model.embedder is not None:
                tokens = model.embedder.admission
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
