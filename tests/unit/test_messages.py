import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dispatch.chunks import EmbedChunk, pack
from serve_app.messages import EmbedCall, EmbedResult, Failure
from tests.support.fakes import result_of, tokenized


def call_of(*inputs: list[int]) -> EmbedCall:
    return pack(
        [EmbedChunk(tokenized(*inputs), "an-id")], is_retry=False, caller="", waiting_tokens=0
    )


def test_tokenized_inputs_know_their_inputs_and_tokens() -> None:
    inputs = tokenized([1, 2, 3], [4], prompt_length=2)

    assert len(inputs) == 2
    assert inputs.tokens == 4
    assert inputs.prompt_lengths.tolist() == [2, 2]


def test_calls_and_results_are_pickled_as_buffers() -> None:
    call = call_of(*([7] * 100 for _ in range(100)))

    size = len(pickle.dumps(call, protocol=5))
    copy = pickle.loads(pickle.dumps(result_of(call)))

    assert size < 4 * call.tokens + 3_000
    assert np.array_equal(copy.vectors, result_of(call).vectors)


def test_a_call_is_immutable() -> None:
    call = call_of([1])

    with pytest.raises(FrozenInstanceError):
        call.request_id = "another"  # type: ignore[misc]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_result_is_cut_into_parts(fails: list[list[bool]]) -> None:
    """`fails` states of each input of each part whether it fails."""
    flat = [fail for part in fails for fail in part]
    whole = EmbedResult(
        vectors=np.arange(len(flat) * 3, dtype=np.float32).reshape(-1, 3),
        failures=tuple(Failure(i, "inference_failed") for i, fail in enumerate(flat) if fail),
        padded_tokens=np.arange(len(flat)),
        inference_s=0.5,
        batch_inputs=len(flat),
    )

    ends = np.cumsum([len(part) for part in fails])
    parts = [whole.part(end - len(part), end) for part, end in zip(fails, ends, strict=True)]

    assert np.array_equal(np.concatenate([part.vectors for part in parts]), whole.vectors)
    assert [n for part in parts for n in part.padded_tokens] == list(range(len(flat)))
    for fail, part in zip(fails, parts, strict=True):
        assert [failure.index for failure in part.failures] == list(np.flatnonzero(fail))
        assert (part.inference_s, part.batch_inputs) == (0.5, len(flat))
