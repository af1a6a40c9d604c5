"""The embedding service: one request from validated input to vectors.

HTTP routes and `DeploymentHandle` callers share this code. `EmbeddingService.embed` resolves the model, checks the
limits, tokenizes, calls the model's embedder and post-processes the vectors. This module does not depend on Starlette
or Ray.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serve_app.config.http import HttpConfig
from serve_app.errors import (
    BatchSizeError,
    DeadlineError,
    InferenceError,
    InvalidRequestError,
    NotAnEmbeddingModelError,
    ServiceError,
)
from serve_app.messages import EmbedResponse, TokenizedInputs
from serve_app.observability.access_log import RequestRecord
from serve_app.observability.metrics import Metrics
from serve_app.schemas.embeddings import EmbeddingRequest, InputType, Priority
from serve_app.service.postprocess import finish
from serve_app.service.registry import EmbeddingModel, ModelRegistry, ServedModel
from serve_app.tokenization.openai_token_ids import Cl100k
from serve_app.tokenization.tokenizer import Prompt

# Requests with at least this many characters are tokenized in a thread. Tokenizing a smaller request takes less than
# 2 ms.
_INLINE_CHARACTERS = 10_000
_TOKENIZER_THREADS = 2
# Tokenizing a request of this many characters can take a second and a quarter of a gigabyte, and a larger one more.
# Such requests are therefore tokenized one at a time, in a thread of their own.
_LARGE_CHARACTERS = 1_000_000

_FAILURE_MESSAGES = {
    "inference_failed": "The model failed on {item}.",
    "non_finite_embedding": "The model returned a non-finite vector for {item}.",
}


class EmbeddingService:
    """Serves embedding requests for all models.

    Args:
        models: the served models; the first is the default.
        limits: the limits on a request.
        metrics: records truncation, tokenization and waiting times.
        cl100k: decodes OpenAI's token ids; required if a model has `token_ids: cl100k`.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        limits: HttpConfig,
        metrics: Metrics,
        cl100k: Cl100k | None = None,
    ) -> None:
        self.models = ModelRegistry(models)
        self._limits = limits
        self._metrics = metrics
        # Few threads are enough: each one takes memory and a core, and the tokenizers library spreads a large batch
        # over the cores itself.
        self._threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._large_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize-large")
        self._cl100k = cl100k

    def not_ready(self) -> list[str]:
        """Return the names of the embedding models that are not ready."""
        return [model.name for model in self.models.embedding if not model.embedder.is_ready]

    async def embed(
        self, request: EmbeddingRequest, record: RequestRecord, *, priority: Priority | None = None
    ) -> EmbedResponse:
        """Embed one request.

        Args:
            request: the validated request.
            record: receives the model's name and the numbers of inputs and tokens.
            priority: `interactive` requests go before `bulk` requests. None means bulk for a request with more than the
                model's `interactive_tokens`, and interactive for any other request.

        Raises:
            ServiceError: the request is rejected, or at least one input has no vector. `param` names the field or the
                item at fault.
        """
        record.inputs = len(request.items)
        seconds = self._limits.request_timeout_s
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await self._embed(request, record, priority)
        except TimeoutError:
            if not deadline.expired():
                raise  # an unexpected error, not this deadline
            message = f"The request exceeded the server's time limit of {seconds:g} s."
            raise DeadlineError(message, "deadline_exceeded") from None
        except ServiceError as error:
            raise error.named_as_sent(request.input_name, is_single=request.is_single) from None

    async def _embed(
        self, request: EmbeddingRequest, record: RequestRecord, priority: Priority | None
    ) -> EmbedResponse:
        model, input_type = self.models.resolve(request.model)
        record.model = model.name
        if not isinstance(model, EmbeddingModel):
            message = f"{model.name} is not an embedding model: {model.reason}."
            raise NotAnEmbeddingModelError(message, "not_an_embedding_model", "model")
        self._check_fields(request, model)
        prompt = _prompt(request, model, input_type)
        self._check_batch_size(len(request.items))
        started = time.perf_counter()
        inputs = await self._tokenize(request, model, prompt)
        tokenization_s = time.perf_counter() - started
        self._metrics.inputs_tokenized(
            model=model.name, truncated=inputs.truncated, seconds=tokenization_s
        )
        self._check_tokens(inputs.tokens)
        is_bulk = inputs.tokens > model.config.interactive_tokens
        if priority is not None:
            is_bulk = priority == "bulk"
        result = await model.embedder.embed(inputs, request_id=record.request_id, is_bulk=is_bulk)
        self._metrics.request_queued(model=model.name, seconds=result.queue_s)
        if result.failures:
            first = result.failures[0]
            raise InferenceError(
                _FAILURE_MESSAGES[first.code], first.code, "input", index=first.index
            )
        record.tokens = inputs.tokens
        return EmbedResponse(
            embeddings=finish(
                result.vectors,
                dimensions=request.dimensions,
                normalize=request.normalize is not False,
            ),
            model=model.name,
            prompt_tokens=inputs.tokens,
            truncated_inputs=inputs.truncated,
            tokenization_s=tokenization_s,
            queue_s=result.queue_s,
            inference_s=result.inference_s,
        )

    def _check_fields(self, request: EmbeddingRequest, model: EmbeddingModel) -> None:
        native = model.dimensions
        if request.dimensions is not None and request.dimensions > native:
            message = f"dimensions must be from 1 to {native} for {model.name}."
            raise InvalidRequestError(message, "invalid_dimensions", "dimensions")
        if isinstance(request.items[0], list) and model.config.token_ids == "reject":
            message = (
                f"{model.name} accepts text, not token ids. Send strings; if your client tokenizes, turn that off "
                "(LangChain: check_embedding_ctx_length=False)."
            )
            raise InvalidRequestError(message, "token_ids_not_accepted", "input")

    def _check_batch_size(self, inputs: int) -> None:
        limit = self._limits.max_client_batch_size
        if inputs > limit:
            message = (
                f"The request has {inputs} inputs; at most {limit} are allowed. Split the list."
            )
            raise BatchSizeError(message, "batch_size_exceeded", "input")

    def _check_tokens(self, tokens: int) -> None:
        limit = self._limits.max_request_tokens
        if tokens > limit:
            message = f"The request has {tokens} tokens in total; at most {limit} are allowed. Split the list."
            raise BatchSizeError(message, "max_tokens_per_request", "input")

    async def _tokenize(
        self, request: EmbeddingRequest, model: EmbeddingModel, prompt: Prompt
    ) -> TokenizedInputs:
        """Tokenize the inputs, in a thread if they are long.

        If the request is cancelled, the thread stops after the current part of the texts.
        """
        items = request.items
        if isinstance(items[0], list) and model.config.token_ids == "cl100k":
            assert self._cl100k is not None, "a model has token_ids: cl100k"
            items = await self._cl100k.decode(items, max_bytes=self._limits.max_body_bytes)
        client_left = threading.Event()
        truncate = model.config.truncate if request.truncates is None else request.truncates

        def tokenize() -> TokenizedInputs:
            if isinstance(items[0], str):
                return model.tokenizer.encode_texts(
                    items,
                    prompt=prompt,
                    truncate=truncate,
                    truncate_direction=request.direction,
                    is_wanted=lambda: not client_left.is_set(),
                )
            return model.tokenizer.encode_ids(
                items, prompt=prompt, truncate=truncate, truncate_direction=request.direction
            )

        characters = sum(map(len, items))
        if characters < _INLINE_CHARACTERS:
            return tokenize()
        threads = self._threads if characters < _LARGE_CHARACTERS else self._large_thread
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, tokenize)
        finally:
            client_left.set()


def _prompt(
    request: EmbeddingRequest, model: EmbeddingModel, input_type: InputType | None
) -> Prompt:
    """Return the prompt that the request names, or else the one for its input type."""
    name = request.prompt_name
    input_type = request.input_type or input_type
    if name is None and input_type is not None:
        name = model.tokenizer.prompt_for(input_type)
    return model.tokenizer.find_prompt(name)
