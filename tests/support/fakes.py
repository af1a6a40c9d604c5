"""Fakes of the embedder and of Ray Serve's handles, and the HTTP application built on them.

The tokenizer is a real one, which `tiny_checkpoint` writes. Vectors depend on the token ids alone,
so that a test knows which vector an input must get.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from tokenizers import Tokenizer as TokenizerFile
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from serve_app import errors
from serve_app.api.app import build_asgi_app
from serve_app.api.auth import VARIABLE, ApiKeys
from serve_app.api.middleware import RequestMiddleware
from serve_app.checkpoints.metadata import Checkpoint
from serve_app.config.http import HttpConfig
from serve_app.config.models import ModelConfig
from serve_app.errors import ServiceError
from serve_app.messages import (
    EmbedCall,
    EmbedResult,
    Failure,
    ReplicaRejected,
    ReplicaState,
    RunningReplica,
    TokenizedInputs,
    Vectors,
)
from serve_app.observability.metrics import Metrics, exposition
from serve_app.service.embeddings import EmbeddingService
from serve_app.service.registry import EmbeddingModel, ServedModel
from serve_app.service.requests import Requests
from serve_app.tokenization.openai_token_ids import Cl100k
from serve_app.tokenization.tokenizer import Tokenizer

DIMENSIONS = 8
MAX_INPUT_TOKENS = 8
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", ":", "test", "input", "2", "string", "a", "b")
PROMPTS = {"query": "query: "}
MODEL, ALIAS, RANKER = "acme/tiny", "tiny", "acme/ranker"
RANKER_REASON = "it is BertForSequenceClassification"
IDLE_REPLICA = ReplicaState(
    "r1",
    ongoing_calls=0,
    busy_seconds=0,
    memory_bytes=0,
    max_batch_tokens=10,
    max_queued_tokens=100,
)


def error_kinds() -> list[type[ServiceError]]:
    """Return every class of error that a request can fail with."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, ServiceError) and kind is not ServiceError]


def tiny_checkpoint(directory: Path) -> Checkpoint:
    """Write a tokenizer of a dozen words, and return an embedding model's checkpoint with it."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = TokenizerFile(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(WORDS[:4]))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Checkpoint(
        directory=directory,
        embeds=True,
        reason="a test says so",
        dimensions=DIMENSIONS,
        max_input_tokens=MAX_INPUT_TOKENS,
        prompts=PROMPTS,
    )


def tokenized(*inputs: Sequence[int], prompt_length: int = 0) -> TokenizedInputs:
    """Pack lists of token ids into one `TokenizedInputs`."""
    lengths = np.array([len(ids) for ids in inputs], np.int32)
    ids = np.array([number for ids in inputs for number in ids], np.int32)
    return TokenizedInputs(ids, lengths, prompt_length)


def vectors_of(inputs: TokenizedInputs | EmbedCall) -> Vectors:
    """Return the fakes' vectors for these ids: float32 [inputs, DIMENSIONS], not of unit length."""
    ends = np.cumsum(inputs.lengths)
    rows = [
        np.random.default_rng(ids).standard_normal(DIMENSIONS, np.float32)
        for ids in np.split(inputs.ids.astype(np.uint32), ends[:-1])
    ]
    return np.stack(rows)


def result_of(inputs: TokenizedInputs | EmbedCall, *failures: Failure) -> EmbedResult:
    """Return a replica's result for inputs."""
    return EmbedResult(
        vectors=vectors_of(inputs),
        failures=failures,
        padded_tokens=inputs.lengths.astype(np.int64),
        inference_s=0.002,
        batch_inputs=len(inputs),
    )


@dataclass(slots=True)
class FakeEmbedder:
    """A fake of `ModelClient` that computes vectors from the token ids.

    Attributes:
        error: raised instead of returning an answer.
        failures: the inputs reported without a vector.
        waits: whether calls never return.
        is_ready: whether the model is ready.
        seen: the inputs of every call.
        bulk: whether each call was bulk.
        called: set by the first call.
        cancelled: the number of cancelled calls.
    """

    error: Exception | None = None
    failures: tuple[Failure, ...] = ()
    waits: bool = False
    is_ready: bool = True
    seen: list[TokenizedInputs] = field(default_factory=list)
    bulk: list[bool] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0

    async def embed(
        self,
        inputs: TokenizedInputs,
        *,
        request_id: str,  # noqa: ARG002
        is_bulk: bool,
    ) -> EmbedResult:
        """Return the vectors of all inputs."""
        self.seen.append(inputs)
        self.bulk.append(is_bulk)
        self.called.set()
        if self.waits:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        return replace(result_of(inputs, *self.failures), queue_s=0.001)


@dataclass(frozen=True, slots=True)
class Application:
    """The HTTP application on fakes, with its embedder and metrics."""

    asgi: RequestMiddleware
    requests: Requests
    embedder: FakeEmbedder
    metrics: Metrics

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return an HTTP client that calls the application in this process."""
        transport = httpx.ASGITransport(self.asgi)
        return httpx.AsyncClient(transport=transport, base_url="http://test", **options)


def build_application(
    tokenizer: Tokenizer,
    *,
    embedder: FakeEmbedder | None = None,
    http: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    keys: str = "",
    cl100k: Cl100k | None = None,
    adds_request_id: bool = True,
) -> Application:
    """Build the application with an embedding model and a model that does not embed.

    Args:
        tokenizer: the tokenizer of the embedding model.
        embedder: the embedder of the embedding model; None for a new `FakeEmbedder`.
        http: settings under `http:`.
        model: settings of the embedding model.
        keys: API keys, in the format of the environment variable.
        cl100k: see `EmbeddingService`.
        adds_request_id: see `build_asgi_app`.
    """
    embedder = embedder or FakeEmbedder()
    settings = HttpConfig.model_validate(http or {})
    metrics = Metrics()
    models = served_models(tokenizer, embedder, model)
    service = EmbeddingService(models, limits=settings, metrics=metrics, cl100k=cl100k)

    async def scrape() -> bytes:
        return exposition({"here": metrics.snapshot()}, {})

    requests = Requests(settings, metrics=metrics)
    asgi = build_asgi_app(
        service,
        requests,
        settings=settings,
        keys=ApiKeys(settings.api_keys_file, {VARIABLE: keys}),
        scrape=scrape,
        adds_request_id=adds_request_id,
    )
    return Application(asgi, requests, embedder, metrics)


def served_models(
    tokenizer: Tokenizer, embedder: FakeEmbedder, model: Mapping[str, Any] | None = None
) -> list[ServedModel]:
    """Return the two models of `build_application`."""
    settings = {"name": MODEL, "source": "-", "aliases": [ALIAS], "token_ids": "model"}
    return [
        EmbeddingModel(
            config=ModelConfig.model_validate({**settings, **(model or {})}),
            reason="a test says so",
            dimensions=DIMENSIONS,
            tokenizer=tokenizer,
            embedder=embedder,
        ),
        ServedModel(ModelConfig(name=RANKER, source="-"), RANKER_REASON),
    ]


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the value of one sample; 0 if it does not exist."""
    samples = (sample for metric in metrics.snapshot() for sample in metric.samples)
    values = [s.value for s in samples if s.name == name and s.labels == labels]
    return values[0] if values else 0.0


Answer = Callable[[EmbedCall], Awaitable[EmbedResult | ReplicaRejected]]


class FakeResponse:
    """A fake of Ray Serve's `DeploymentResponse`."""

    def __init__(self, answer: Awaitable[EmbedResult | ReplicaRejected]) -> None:
        self._answer = asyncio.ensure_future(answer)
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, None, EmbedResult | ReplicaRejected]:
        """Wait for the result."""
        return self._answer.__await__()

    def cancel(self) -> None:
        """Cancel the call."""
        self.is_cancelled = True
        self._answer.cancel()


class FakeHandle:
    """A fake of Ray Serve's handle of a model's deployment.

    Args:
        answer: returns a replica's result for a call.
        replicas: the replicas that Ray Serve sends calls to.

    Attributes:
        calls: all calls received.
        responses: the response to each call.
        called: set by the first call.
        is_connected: whether Ray Serve sends the replicas and their states.
    """

    def __init__(self, answer: Answer, *replicas: RunningReplica) -> None:
        self._answer = answer
        self.replicas: Sequence[RunningReplica] = replicas
        self.is_connected = False
        self.calls: list[EmbedCall] = []
        self.responses: list[FakeResponse] = []
        self.called = asyncio.Event()
        self.embed = SimpleNamespace(remote=self._call)

    def connect(self) -> None:
        """Record that the ingress wants to know the replicas."""
        self.is_connected = True

    def _call(self, call: EmbedCall) -> FakeResponse:
        response = FakeResponse(self._answer(call))
        self.calls.append(call)
        self.responses.append(response)
        self.called.set()
        return response


class FakeCaller:
    """A fake of `ReplicaCaller`, for tests of the queue and the client.

    Args:
        answer: returns the result of a call, or raises.

    Attributes:
        calls: all calls received.
        retries: the argument of every `pause`.
    """

    def __init__(self, answer: Callable[[EmbedCall], Awaitable[EmbedResult]]) -> None:
        self._answer = answer
        self.calls: list[EmbedCall] = []
        self.retries: list[int] = []

    async def call(self, call: EmbedCall) -> EmbedResult:
        """Record the call and answer it."""
        self.calls.append(call)
        return await self._answer(call)

    async def pause(self, *, retries: int) -> None:
        """Record the pause, and let other tasks run once."""
        self.retries.append(retries)
        await asyncio.sleep(0)
