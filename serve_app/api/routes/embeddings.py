"""The embedding routes: `POST /v1/embeddings` and its aliases, and `POST /embed` of text-embeddings-inference."""

import asyncio
from collections.abc import Callable

from starlette.responses import Response

from serve_app.api.request import ApiRequest
from serve_app.api.request_body import collector_paused, read_body
from serve_app.api.serialization import write_response, write_rows
from serve_app.config.http import HttpConfig
from serve_app.messages import EmbedResponse
from serve_app.schemas.embeddings import EmbeddingRequest, parse_request, read_priority
from serve_app.service.embeddings import EmbeddingService

# Responses with at least this many numbers are serialized in a thread, because serializing them takes milliseconds.
_INLINE_NUMBERS = 300_000

Writer = Callable[[EmbedResponse, EmbeddingRequest], bytes]


class EmbeddingRoutes:
    """The handlers of the embedding routes.

    Args:
        service: handles the embedding requests.
        settings: the limits on request bodies.
    """

    def __init__(self, service: EmbeddingService, *, settings: HttpConfig) -> None:
        self._service = service
        self._settings = settings

    async def embeddings(self, request: ApiRequest) -> Response:
        """`POST /v1/embeddings`."""
        return await self._embed(request, _openai_response)

    async def embed(self, request: ApiRequest) -> Response:
        """`POST /embed`, the route of text-embeddings-inference: the response contains only the vectors."""
        return await self._embed(request, _tei_response)

    async def _embed(self, request: ApiRequest, write: Writer) -> Response:
        request.in_progress.admit()
        body = await read_body(
            request,
            reserve_bytes=request.in_progress.reserve_bytes,
            max_bytes=self._settings.max_body_bytes,
            max_values=self._settings.max_client_batch_size + self._settings.max_request_tokens,
            timeout_s=self._settings.body_timeout_s,
        )
        with collector_paused():
            payload = parse_request(body, most_inputs=self._settings.max_client_batch_size)
        priority = read_priority(request.headers.get("x-priority"), name="x-priority")
        if "model" in request.path_params:  # Azure's deployments, OpenAI's former engines
            payload = payload.model_copy(update={"model": request.path_params["model"]})
        record = request.in_progress.record
        result = await self._service.embed(payload, record, priority=priority)
        if result.embeddings.size < _INLINE_NUMBERS:
            content = write(result, payload)
        else:
            content = await asyncio.to_thread(write, result, payload)
        headers = _timing_headers(result, elapsed_s=record.elapsed_s)
        return Response(content, media_type="application/json", headers=headers)


def _openai_response(result: EmbedResponse, payload: EmbeddingRequest) -> bytes:
    return write_response(
        result.embeddings,
        encoding_format=payload.encoding_format or "float",
        model=result.model,
        prompt_tokens=result.prompt_tokens,
    )


def _tei_response(result: EmbedResponse, payload: EmbeddingRequest) -> bytes:
    return write_rows(result.embeddings, encoding_format=payload.encoding_format or "float")


def _timing_headers(result: EmbedResponse, *, elapsed_s: float) -> dict[str, str]:
    headers = {
        "x-compute-tokens": str(result.prompt_tokens),
        "x-total-time": _milliseconds(elapsed_s),
        "x-tokenization-time": _milliseconds(result.tokenization_s),
        "x-queue-time": _milliseconds(result.queue_s),
        "x-inference-time": _milliseconds(result.inference_s),
    }
    if result.truncated_inputs:
        headers["x-truncated-inputs"] = str(result.truncated_inputs)
    return headers


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"
