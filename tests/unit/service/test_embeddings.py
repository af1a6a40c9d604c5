import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.config.http import HttpConfig
from serve_app.errors import (
    BatchSizeError,
    DeadlineError,
    InferenceError,
    InvalidRequestError,
    TokenizationError,
)
from serve_app.messages import EmbedResponse, Failure
from serve_app.observability.access_log import RequestRecord
from serve_app.observability.metrics import Metrics
from serve_app.schemas.embeddings import build_request
from serve_app.service.embeddings import EmbeddingService
from serve_app.service.postprocess import finish
from serve_app.tokenization.openai_token_ids import Cl100k
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import (
    ALIAS,
    DIMENSIONS,
    MODEL,
    RANKER,
    FakeEmbedder,
    counted,
    served_models,
    vectors_of,
)

pytestmark = pytest.mark.anyio

Build = Callable[..., EmbeddingService]


@pytest.fixture
def embedder() -> FakeEmbedder:
    """Return a fake deployment of the model."""
    return FakeEmbedder()


@pytest.fixture
def metrics() -> Metrics:
    """Return the metrics that the service records."""
    return Metrics()


@pytest.fixture
def build(tokenizer: Tokenizer, embedder: FakeEmbedder, metrics: Metrics) -> Build:
    """Return a function that builds a service with both models. Its keywords are limits."""

    def build(**limits: Any) -> EmbeddingService:
        models = served_models(tokenizer, embedder)
        return EmbeddingService(models, limits=HttpConfig(**limits), metrics=metrics)

    return build


async def embed(service: EmbeddingService, **fields: Any) -> EmbedResponse:
    """Embed a request with these fields."""
    return await service.embed(build_request(**fields), RequestRecord("an-id", "CALL"))


async def test_vectors_are_in_input_order_and_have_unit_length(
    build: Build, embedder: FakeEmbedder
) -> None:
    response = await embed(build(), input=["a", "b", "a b"])

    expected = finish(vectors_of(embedder.seen[0]), dimensions=None, normalize=True)
    assert np.array_equal(response.embeddings, expected)
    assert np.allclose(np.linalg.norm(response.embeddings, axis=1), 1)
    assert (response.model, response.prompt_tokens) == (MODEL, 3 + 3 + 4)


async def test_without_normalize_the_model_s_vectors_are_unchanged(
    build: Build, embedder: FakeEmbedder
) -> None:
    response = await embed(build(), input=["a", "b"], normalize=False)

    assert np.array_equal(response.embeddings, vectors_of(embedder.seen[0]))


@pytest.mark.parametrize("dimensions", [1, 3, DIMENSIONS])
async def test_vectors_are_normalized_after_dimensions_are_reduced(
    build: Build, embedder: FakeEmbedder, dimensions: int
) -> None:
    response = await embed(build(), input="a", dimensions=dimensions)

    expected = vectors_of(embedder.seen[0])[:, :dimensions]
    assert response.embeddings.shape == (1, dimensions)
    assert np.allclose(response.embeddings, expected / np.linalg.norm(expected))


async def test_tokenizing_in_a_thread_gives_the_same_ids(
    build: Build, embedder: FakeEmbedder
) -> None:
    texts = ["test input " * 3] * 400
    service = build()

    await embed(service, input=texts)
    await embed(service, input=texts[:1])

    large, small = embedder.seen
    assert len(large) == 400
    assert large.ids.tolist() == small.ids.tolist() * 400


async def test_the_response_reports_times_in_seconds(build: Build) -> None:
    response = await embed(build(), input="a")

    assert (response.queue_s, response.inference_s) == (0.001, 0.002)
    assert response.tokenization_s > 0


async def test_truncated_inputs_count_under_the_model_s_own_name(
    build: Build, metrics: Metrics
) -> None:
    response = await embed(build(), input=["a b a b a b a b", "a"], model=ALIAS, truncate=True)

    assert response.truncated_inputs == 1
    assert counted(metrics, "embeddings_truncated_inputs_total", model=MODEL) == 1
    assert counted(metrics, "embeddings_tokenize_seconds_count", model=MODEL) == 1


@pytest.mark.parametrize(("inputs", "passes"), [(2048, True), (2049, False)])
async def test_a_request_may_have_2048_inputs_by_default(
    build: Build,
    embedder: FakeEmbedder,
    inputs: int,
    passes: bool,  # noqa: FBT001
) -> None:
    service = build()

    if passes:
        response = await embed(service, input=["a"] * inputs)
        assert len(response.embeddings) == inputs
    else:
        with pytest.raises(BatchSizeError) as error:
            await embed(service, input=["a"] * inputs)
        assert error.value.message == (
            "The request has 2049 inputs; at most 2048 are allowed. Split the list."
        )
        assert embedder.seen == []


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": "a b a b a b a b"}, "input", "in input."),
        ({"inputs": "a b a b a b a b"}, "inputs", "in inputs."),
        ({"input": ["a", "a b a b a b a b"]}, "input[1]", "in input[1]."),
        ({"inputs": ["a", "a b a b a b a b"]}, "inputs[1]", "in inputs[1]."),
        ({"inputs": [4, 4, 4, 4, 4, 4, 4]}, "inputs", "in inputs."),
    ],
)
async def test_errors_name_the_item_as_the_client_sent_it(
    build: Build, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(TokenizationError) as error:
        await embed(build(), **fields)

    assert error.value.param == param
    assert words in error.value.message


async def test_the_first_failure_names_its_input(build: Build, embedder: FakeEmbedder) -> None:
    embedder.failures = (Failure(1, "inference_failed"), Failure(2, "non_finite_embedding"))

    with pytest.raises(InferenceError) as error:
        await embed(build(), input=["a", "b", "a"])

    assert (error.value.code, error.value.param) == ("inference_failed", "input[1]")


async def test_the_deadline_cancels_the_call_to_the_model(
    build: Build, embedder: FakeEmbedder
) -> None:
    embedder.waits = True

    with pytest.raises(DeadlineError) as error:
        await embed(build(request_timeout_s=0.01), input="a")

    assert error.value.code == "deadline_exceeded"
    assert embedder.cancelled == 1


async def test_an_unrelated_timeout_is_not_a_deadline_error(
    build: Build, embedder: FakeEmbedder
) -> None:
    embedder.error = TimeoutError()

    with pytest.raises(TimeoutError):
        await embed(build(), input="a")


async def test_a_disconnecting_client_cancels_the_call(
    build: Build, embedder: FakeEmbedder
) -> None:
    embedder.waits = True
    task = asyncio.create_task(embed(build(), input="a"))
    await embedder.called.wait()

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert embedder.cancelled == 1


async def test_a_model_that_cannot_embed_now_is_not_ready(
    build: Build, embedder: FakeEmbedder
) -> None:
    """A model that never embeds does not count."""
    service = build()
    ready = service.not_ready()

    embedder.is_ready = False

    assert ready == []
    assert service.not_ready() == [MODEL]
    assert service.models.get(RANKER).task == "none"


async def test_the_record_gets_the_model_and_the_numbers_of_inputs_and_tokens(
    build: Build, embedder: FakeEmbedder
) -> None:
    answered, failed = RequestRecord("an-id", "CALL"), RequestRecord("an-id", "CALL")
    service = build()

    await service.embed(build_request(input=["a", "b"], model=ALIAS), answered)
    embedder.failures = (Failure(0, "inference_failed"),)
    with pytest.raises(InferenceError):
        await service.embed(build_request(input="a"), failed)

    assert (answered.model, answered.inputs, answered.tokens) == (MODEL, 2, 6)
    assert (failed.model, failed.inputs, failed.tokens) == (MODEL, 1, 0)


# Input types.


@pytest.mark.parametrize("input_type", ["query", "search_query"])
async def test_a_query_gets_the_query_prompt(
    build: Build, embedder: FakeEmbedder, input_type: str
) -> None:
    service = build()

    for fields in (
        {"prompt_name": "query"},
        {"input_type": input_type},
        {"model": f"{MODEL}:{input_type}"},
        {"model": f"{ALIAS}:{input_type}"},
    ):
        await embed(service, input="a", **fields)

    by_name, *others = (inputs.ids.tolist() for inputs in embedder.seen)
    assert all(ids == by_name for ids in others)
    assert len(by_name) > 3


@pytest.mark.parametrize("input_type", ["document", "search_document", "passage"])
async def test_a_document_gets_the_document_prompt(
    build: Build, embedder: FakeEmbedder, input_type: str
) -> None:
    """The document prompt of this model is empty."""
    service = build()

    await embed(service, input="a", input_type=input_type)
    await embed(service, input="a")

    first, second = (inputs.ids.tolist() for inputs in embedder.seen)
    assert first == second


async def test_prompt_name_overrides_input_type(build: Build, embedder: FakeEmbedder) -> None:
    await embed(build(), input="a", input_type="document", prompt_name="query")

    assert embedder.seen[0].tokens > 3


async def test_input_type_overrides_the_suffix_of_the_model_name(
    build: Build, embedder: FakeEmbedder
) -> None:
    await embed(build(), input="a", input_type="document", model=f"{MODEL}:query")

    assert embedder.seen[0].tokens == 3


async def test_an_unknown_input_type_is_rejected(build: Build) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await embed(build(), input="a", input_type="question")

    assert (raised.value.param, raised.value.code) == ("input_type", "invalid_input_type")


# Token ids from OpenAI clients.


async def test_openai_token_ids_are_embedded_as_their_text(
    tokenizer: Tokenizer, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    models = served_models(tokenizer, embedder, {"token_ids": "cl100k"})
    encoding = SimpleNamespace(decode_bytes=bytes)
    service = EmbeddingService(
        models, limits=HttpConfig(), metrics=metrics, cl100k=Cl100k(lambda: encoding)
    )

    await embed(service, input=list(b"a b"))
    await embed(service, input=[list(b"a b"), list(b"test")])
    await embed(service, input=["a b", "test"])

    one, several, texts = embedder.seen
    assert np.array_equal(several.ids, texts.ids)
    assert np.array_equal(one.ids, texts.ids[: len(one.ids)])
