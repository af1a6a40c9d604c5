"""The embedding service: the path of one request from validated input to vectors.

HTTP routes and `DeploymentHandle` callers share this code. `Service.embed` resolves the model, checks the limits,
tokenizes, calls the model's embedder and post-processes the vectors. This module does not depend on Starlette or Ray.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from serve_app.config.http import HttpConfig
from serve_app.dispatch.admission import Admission
from serve_app.errors import (
    BatchSizeError,
    DeadlineError,
    InferenceError,
    InvalidRequestError,
    NotAnEmbeddingModelError,
    OverloadedError,
    ServiceError,
)
from serve_app.messages import EmbedResponse, Failure
from serve_app.observability.metrics import Metrics, Reason
from serve_app.schemas.embeddings import EmbeddingRequest, Priority
from serve_app.service.postprocess import finish, non_finite_rows
from serve_app.service.registry import ModelRegistry, ServedModel
from serve_app.tokenization.openai_token_ids import Cl100k
from serve_app.tokenization.tokenizer import Tokenized, Tokenizer

# Requests with at least this many characters are tokenized in a thread. Tokenizing a smaller request takes less than
# 2 ms.
_INLINE_CHARACTERS = 10_000

# Bodies up to this size are always accepted, so that a few large bodies cannot lock out all other clients.
_SMALL_BODY_BYTES = 65_536
_TOKENIZER_THREADS = 2
# Tokenizing a request of at least this many characters takes seconds and gigabytes, so such requests are tokenized one
# at a time, in a thread of their own.
_LARGE_CHARACTERS = 1_000_000

_FAILURE_MESSAGES = {
    "inference_failed": "The model failed on {item}.",
    "non_finite_embedding": "The model returned a non-finite vector for {item}.",
}


class Service:
    """Serves embedding requests for all models.

    Args:
        models: the served models; the first is the default.
        limits: the limits on a request.
        metrics: records truncation, tokenization times and rejections.
        max_requests: the maximum number of concurrent requests; None for no limit.
        cl100k: decodes OpenAI's token ids; required if a model has `token_ids: cl100k`.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        limits: HttpConfig,
        metrics: Metrics,
        max_requests: int | None = None,
        cl100k: Cl100k | None = None,
    ) -> None:
        self.models = ModelRegistry(models)
        self._limits = limits
        self._metrics = metrics
        self.requests = Admission(limit=max_requests, unknown_s=limits.retry_after_s)
        self._held_bytes = 0
        # Few threads are enough: each one takes memory and a core, and the tokenizers library spreads a large batch
        # over the cores itself.
        self._threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._large_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize-large")
        self._cl100k = cl100k

    def _prompt_name(self, request: EmbeddingRequest, tokenizer: Tokenizer) -> str | None:
        """Return the request's `prompt_name`, or the name of the prompt for the request's input type."""
        input_type = request.input_type or self.models.input_type(request.model)
        if request.prompt_name is not None or input_type is None:
            return request.prompt_name
        return tokenizer.prompt_for(input_type)

    async def not_ready(self) -> list[str]:
        """Return the names of the embedding models that have no ready replica."""
        embedding = [(m.name, m.embedder) for m in self.models if m.embedder is not None]
        ready = await asyncio.gather(*(embedder.is_ready() for _, embedder in embedding))
        return [name for (name, _), is_ready in zip(embedding, ready, strict=True) if not is_ready]

    @contextmanager
    def admit(self) -> Iterator[Callable[[int], None]]:
        """Context manager that holds a request slot. Enter it before reading the request body.

        Yields:
            A function that takes the change of the body's size in bytes (negative when memory is released). It raises
            `OverloadedError` if all request bodies together exceed the memory limit, unless this body is at most
            64 KiB.

        Raises:
            OverloadedError: all slots are in use.
        """
        if not self.requests.has_room(1):
            raise self._overloaded("ingress_requests")
        own = 0

        def reserve_bytes(size: int) -> None:
            nonlocal own
            is_small = own + size <= _SMALL_BODY_BYTES
            if not is_small and self._held_bytes + size > self._limits.body_memory_bytes:
                raise self._overloaded("body_bytes")
            own += size
            self._held_bytes += size

        self.requests.add(1)
        try:
            yield reserve_bytes
        except BaseException:
            self.requests.drop(1)
            raise
        else:
            self.requests.finish(1)
        finally:
            self._held_bytes -= own

    def _overloaded(self, reason: Reason) -> OverloadedError:
        self._metrics.overloaded(reason=reason)
        message = (
            "Too many concurrent requests. Retry after the delay given in the Retry-After header."
        )
        return OverloadedError(message, "overloaded", retry_after_s=self.requests.retry_after_s)

    async def embed(
        self, request: EmbeddingRequest, *, request_id: str, priority: Priority | None = None
    ) -> EmbedResponse:
        """Embed one request.

        Args:
            request: the validated request.
            request_id: identifies the request in logs.
            priority: `interactive` requests go before `bulk` requests. None means bulk for a request with more than the
                model's `interactive_tokens`, and interactive for any other request.

        Raises:
            ServiceError: the request is rejected, or at least one input has no vector. `param` names the field or the
                item at fault.
        """
        seconds = self._limits.request_timeout_s
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await self._embed(request, request_id, priority)
        except TimeoutError:
            if not deadline.expired():
                raise  # an unexpected error, not this deadline
            message = f"The request exceeded the server's time limit of {seconds:g} s."
            raise DeadlineError(message, "deadline_exceeded") from None
        except ServiceError as error:
            raise _with_client_names(error, request) from None

    async def _embed(
        self, request: EmbeddingRequest, request_id: str, priority: Priority | None
    ) -> EmbedResponse:
        model = self.models.resolve(request.model)
        if model.tokenizer is None or model.embedder is None:
            message = f"{model.name} is not an embedding model: {model.reason}."
            raise NotAnEmbeddingModelError(message, "not_an_embedding_model", "model")
        self._check_fields(request, model)
        prompt_name = self._prompt_name(request, model.tokenizer)
        model.tokenizer.check_prompt(prompt_name)
        self._check_batch_size(len(request.items))
        started = time.perf_counter()
        tokenized = await self._tokenize(request, model, model.tokenizer, prompt_name)
        tokenization_s = time.perf_counter() - started
        self._metrics.inputs_tokenized(
            model=model.name, truncated=tokenized.truncated, seconds=tokenization_s
        )
        self._check_tokens(tokenized.inputs.tokens)
        is_bulk = tokenized.inputs.tokens > model.config.interactive_tokens
        if priority is not None:
            is_bulk = priority == "bulk"
        answer = await model.embedder.embed(
            tokenized.inputs, request_id=request_id, is_bulk=is_bulk
        )
        _raise_first_failure(answer.failures)
        # Replicas already report non-finite vectors as failures. Check again, because clients do not detect NaN.
        _raise_first_failure(
            [Failure(row, "non_finite_embedding") for row in non_finite_rows(answer.vectors)]
        )
        vectors = finish(
            answer.vectors, dimensions=request.dimensions, normalize=request.normalize is not False
        )
        return EmbedResponse(
            embeddings=vectors,
            model=model.name,
            prompt_tokens=tokenized.inputs.tokens,
            truncated_inputs=tokenized.truncated,
            tokenization_s=tokenization_s,
            queue_s=answer.queue_s,
            inference_s=answer.inference_s,
        )

    def _check_fields(self, request: EmbeddingRequest, model: ServedModel) -> None:
        native = model.dimensions
        if request.dimensions is not None and native and request.dimensions > native:
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
        self,
        request: EmbeddingRequest,
        model: ServedModel,
        tokenizer: Tokenizer,
        prompt_name: str | None,
    ) -> Tokenized:
        """Tokenize the inputs, in a thread if they are long.

        If the request is cancelled, the thread stops after the current part of the texts.
        """
        items = request.items
        if isinstance(items[0], list) and model.config.token_ids == "cl100k":
            assert self._cl100k is not None, "a model has token_ids: cl100k"
            items = await self._cl100k.decode(items, max_bytes=self._limits.max_body_bytes)
        client_left = threading.Event()
        options: dict[str, Any] = {
            "prompt_name": prompt_name,
            "truncate": model.config.truncate if request.truncate is None else request.truncate,
            "truncate_direction": request.direction,
        }
        if isinstance(items[0], str):
            options["is_wanted"] = lambda: not client_left.is_set()
            run = partial(tokenizer.encode_texts, items, **options)
        else:
            run = partial(tokenizer.encode_ids, items, **options)
        characters = sum(map(len, items))
        if characters < _INLINE_CHARACTERS:
            return run()
        threads = self._threads if characters < _LARGE_CHARACTERS else self._large_thread
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, run)
        finally:
            client_left.set()


def _raise_first_failure(failures: Sequence[Failure]) -> None:
    if failures:
        first = failures[0]
        item = f"input[{first.index}]"
        raise InferenceError(_FAILURE_MESSAGES[first.code].format(item=item), first.code, item)


def _with_client_names(error: ServiceError, request: EmbeddingRequest) -> ServiceError:
    """Return the error with the client's name for the item at fault.

    That is `inputs[3]` for an item of `inputs`, and `input` for a single input without a list.
    """
    name, param, message = request.input_name, error.param, error.message
    if param == "input":
        param = name
    elif param is not None and param.startswith("input["):
        ours, sent = ("input[0]", name) if request.is_single else ("input[", f"{name}[")
        param, message = param.replace(ours, sent), message.replace(ours, sent)
    if param == error.param:
        return error
    return type(error)(message, error.code, param, error.retry_after_s)
