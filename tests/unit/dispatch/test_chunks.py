import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dispatch.chunks import EmbedChunk, join, pack, poison_pill, split
from serve_app.messages import EmbedResult, Failure
from tests.support.fakes import result_of, tokenized, vectors_of
from tests.support.strategies import budgets

requests = st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=40)
# The seconds from the end of the batch before, and the length.
spans = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 60)), min_size=1, max_size=12)


def answered(chunk: EmbedChunk, *, start: float = 0.0, end: float = 0.0) -> EmbedResult:
    """Answer a chunk whose batch was computed between two times, in seconds from its arrival."""
    return replace(result_of(chunk.inputs), inference_s=end - start, queue_s=start)


def chunks_of(count: int) -> list[EmbedChunk]:
    """Split a request into chunks of one input each."""
    inputs = tokenized(*([number] for number in range(count)))
    return split(inputs, chunk_tokens=1, request_id="an-id")


def times(batches: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return inference and queue seconds of a request with one chunk in each (start, end)."""
    chunks = chunks_of(len(batches))
    results = [
        answered(chunk, start=start, end=end)
        for chunk, (start, end) in zip(chunks, batches, strict=True)
    ]
    result = join(chunks, results)
    return result.inference_s, result.queue_s


# Splitting.


def test_a_request_that_fits_is_not_copied() -> None:
    inputs = tokenized([1, 2], [3], prompt_length=1)

    (chunk,) = split(inputs, chunk_tokens=3, request_id="an-id")

    assert chunk.inputs is inputs
    assert (chunk.request_id, chunk.first_input) == ("an-id", 0)


def test_chunks_are_filled_in_input_order() -> None:
    inputs = tokenized([1] * 3, [2] * 2, [3] * 4, [4] * 9, [5])

    chunks = split(inputs, chunk_tokens=5, request_id="an-id")

    assert [chunk.inputs.lengths.tolist() for chunk in chunks] == [[3, 2], [4], [9], [1]]
    assert [chunk.first_input for chunk in chunks] == [0, 2, 3, 4]


def test_a_chunk_has_a_limited_number_of_inputs() -> None:
    """The vectors of a call have to fit one message."""
    packed = tokenized(*[[7]] * 5000)

    chunks = split(packed, chunk_tokens=10_000, request_id="an-id")

    assert [len(chunk.inputs) for chunk in chunks] == [2048, 2048, 904]
    assert [chunk.first_input for chunk in chunks] == [0, 2048, 4096]


@given(requests, budgets)
def test_splitting_keeps_each_input_and_respects_the_limit(
    inputs: list[list[int]], chunk_tokens: int
) -> None:
    packed = tokenized(*inputs, prompt_length=2)

    chunks = split(packed, chunk_tokens=chunk_tokens, request_id="an-id")

    assert np.concatenate([chunk.inputs.ids for chunk in chunks]).tolist() == packed.ids.tolist()
    for chunk in chunks:
        first, last = chunk.first_input, chunk.first_input + len(chunk.inputs)
        assert chunk.inputs.lengths.tolist() == [len(ids) for ids in inputs[first:last]]
        assert chunk.inputs.tokens == sum(chunk.inputs.lengths)
        assert chunk.inputs.tokens <= chunk_tokens or len(chunk.inputs) == 1
        assert (chunk.inputs.prompt_length, chunk.request_id) == (2, "an-id")


# Joining.


@given(requests, budgets)
def test_joining_returns_each_input_its_own_vector(
    inputs: list[list[int]], chunk_tokens: int
) -> None:
    packed = tokenized(*inputs)
    chunks = split(packed, chunk_tokens=chunk_tokens, request_id="an-id")

    answer = join(chunks, [answered(chunk) for chunk in chunks])

    assert np.array_equal(answer.vectors, vectors_of(packed))
    assert answer.failures == ()


def test_failures_are_indexed_within_the_request() -> None:
    inputs = tokenized([1] * 2, [2] * 2, [3] * 2, [4] * 2)
    chunks = split(inputs, chunk_tokens=5, request_id="an-id")
    failures = [
        (Failure(0, "inference_failed"),),
        (Failure(0, "inference_failed"), Failure(1, "non_finite_embedding")),
    ]
    results = [
        result_of(chunk.inputs, *failed) for chunk, failed in zip(chunks, failures, strict=True)
    ]

    answer = join(chunks, results)

    assert answer.failures == (
        Failure(0, "inference_failed"),
        Failure(2, "inference_failed"),
        Failure(3, "non_finite_embedding"),
    )


# Times.


@pytest.mark.parametrize(
    ("batches", "inference_s"),
    [
        ([(2, 5)], 3),
        ([(2, 5), (7, 8)], 4),
        ([(7, 8), (2, 5)], 4),
        ([(2, 5), (4, 9)], 7),
        ([(2, 5), (5, 9)], 7),
        ([(2, 5), (2, 5), (2, 5)], 3),
    ],
    ids=["one", "apart", "unordered", "overlapping", "adjacent", "same batch"],
)
def test_inference_time_is_the_time_covered_by_batches(
    batches: list[tuple[float, float]], inference_s: float
) -> None:
    assert times(batches)[0] == inference_s


@given(spans)
def test_inference_and_queue_time_add_up_to_the_whole_time(steps: list[tuple[int, int]]) -> None:
    ends = list(accumulate(gap for gap, _ in steps))
    starts = [max(end - length, 0) for end, (_, length) in zip(ends, steps, strict=True)]
    batches = list(zip(starts, ends, strict=True))

    inference_s, queue_s = times(batches)

    covered = {second for start, end in batches for second in range(start, end)}
    assert inference_s == len(covered)
    assert queue_s == max(ends) - len(covered)


# Packing.


def test_a_call_has_the_inputs_of_all_chunks_in_order() -> None:
    chunks = [
        EmbedChunk(tokenized([1, 2], [3], prompt_length=1), "first-id"),
        EmbedChunk(tokenized([4]), "second-id"),
    ]

    call = pack(chunks, is_retry=True, caller="me", waiting_tokens=7)

    assert call.ids.tolist() == [1, 2, 3, 4]
    assert call.lengths.tolist() == [2, 1, 1]
    assert call.prompt_lengths.tolist() == [1, 1, 0]
    assert (call.request_id, call.is_retry) == ("first-id", True)
    assert (call.caller, call.waiting_tokens) == ("me", 7)
    assert (call.tokens, len(call)) == (4, 3)


# Poison pills.


@pytest.mark.parametrize(
    ("inputs", "param", "words"),
    [
        (1, "input[3]", "while processing input[3]."),
        (2, "input", "while processing inputs 3 to 4."),
        (7, "input", "while processing inputs 3 to 9."),
    ],
)
def test_a_poison_pill_names_its_inputs(
    inputs: int, param: str, words: str, log: pytest.LogCaptureFixture
) -> None:
    chunk = EmbedChunk(tokenized(*[[7]] * inputs), "an-id", first_input=3)

    error = poison_pill(chunk)

    assert (error.code, error.param) == ("inference_failed", param)
    assert error.message == f"The model's process died twice {words}"
    (record,) = log.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().endswith(f"processing inputs 3 to {2 + inputs}")
    assert record.__dict__["request_id"] == "an-id"
