import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from serve_app.messages import EmbedChunk
from tests.support.fakes import result_of, tokenized


def test_tokenized_inputs_know_their_inputs_and_tokens() -> None:
    inputs = tokenized([1, 2, 3], [4])

    assert len(inputs) == 2
    assert inputs.tokens == 4


def test_chunks_and_results_are_pickled_as_buffers() -> None:
    chunk = EmbedChunk(tokenized(*([7] * 100 for _ in range(100))), "an-id")

    size = len(pickle.dumps(chunk, protocol=5))
    copy = pickle.loads(pickle.dumps(result_of(chunk)))

    assert size < 4 * chunk.inputs.tokens + 2_000
    assert np.array_equal(copy.vectors, result_of(chunk).vectors)


def test_a_chunk_is_immutable() -> None:
    """Chunks of one request share buffers."""
    chunk = EmbedChunk(tokenized([1]), "an-id")

    with pytest.raises(FrozenInstanceError):
        chunk.request_id = "another"  # type: ignore[misc]
