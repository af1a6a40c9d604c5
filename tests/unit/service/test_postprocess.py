import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from serve_app.messages import Vectors
from serve_app.service.postprocess import finish, non_finite_rows, write_response

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=finite)


@given(vectors, st.data())
def test_dimensions_keep_the_first_components(vectors: Vectors, data: st.DataObject) -> None:
    """Without normalizing, nothing but the length of the rows changes."""
    dimensions = data.draw(st.none() | st.integers(1, vectors.shape[1]))

    finished = finish(vectors, dimensions=dimensions, normalize=False)

    assert finished.tobytes() == vectors[:, :dimensions].tobytes()


@given(vectors, st.data())
def test_normalizing_gives_unit_length_after_the_cut(vectors: Vectors, data: st.DataObject) -> None:
    """Every row that is longer than 1e-12 gets length one, in its own direction; rounding aside."""
    dimensions = data.draw(st.none() | st.integers(1, vectors.shape[1]))
    kept = vectors[:, :dimensions].astype(np.float64)
    lengths = np.linalg.norm(kept, axis=1)

    finished = finish(vectors, dimensions=dimensions, normalize=True)

    rows = lengths > 1e-12
    assert finished.dtype == np.float32
    assert np.allclose(np.linalg.norm(finished[rows].astype(np.float64), axis=1), 1, atol=1e-6)
    assert np.allclose(finished[rows], kept[rows] / lengths[rows, None], rtol=1e-6, atol=1e-7)


@given(vectors)
def test_finite_vectors_stay_finite(vectors: Vectors) -> None:
    """No float32 is so large or so small that bringing it to unit length gives NaN or an infinity."""
    finished = finish(vectors, dimensions=None, normalize=True)

    assert non_finite_rows(finished) == []


def test_a_row_of_zeros_stays_one() -> None:
    """It has no direction; torch leaves it as it is, too."""
    finished = finish(np.zeros((1, 3), np.float32), dimensions=None, normalize=True)

    assert finished.tolist() == [[0, 0, 0]]


@given(vectors)
def test_finishing_leaves_the_answer_of_the_model_alone(vectors: Vectors) -> None:
    """The buffer came from another process and may be read-only."""
    before = vectors.tobytes()
    vectors.setflags(write=False)

    finish(vectors, dimensions=1, normalize=True)

    assert vectors.tobytes() == before


def test_rows_that_are_not_finite_are_named() -> None:
    """NaN and both infinities, wherever in the row they stand."""
    vectors = np.array([[1, 2], [np.nan, 1], [1, np.inf], [0, 0], [-np.inf, 0]], np.float32)

    assert non_finite_rows(vectors) == [1, 2, 4]


@given(vectors, st.booleans())
def test_floats_read_back_to_the_same_float32(vectors: Vectors, is_cut: bool) -> None:  # noqa: FBT001
    """Written as JSON numbers and read by any parser, every bit is there again."""
    sent = finish(vectors, dimensions=1 if is_cut else None, normalize=False)
    sent.setflags(write=False)

    body = write_response(sent, encoding_format="float", model="m", prompt_tokens=3)

    rows = [entry["embedding"] for entry in json.loads(body)["data"]]
    assert np.array(rows, np.float32).tobytes() == sent.tobytes()


@given(vectors, st.booleans())
def test_base64_holds_the_same_bytes(vectors: Vectors, is_cut: bool) -> None:  # noqa: FBT001
    """Little-endian float32 in the standard alphabet, padded, without a line break."""
    sent = finish(vectors, dimensions=1 if is_cut else None, normalize=False)
    sent.setflags(write=False)

    body = write_response(sent, encoding_format="base64", model="m", prompt_tokens=3)

    rows = [entry["embedding"] for entry in json.loads(body)["data"]]
    decoded = b"".join(base64.b64decode(row, validate=True) for row in rows)
    assert decoded == sent.astype("<f4").tobytes()


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_a_response_has_the_keys_of_the_page_and_no_others(encoding_format: str) -> None:
    """In input order, with the tokens counted once and stated twice."""
    vectors = np.ones((2, 3), np.float32)

    body = json.loads(
        write_response(vectors, encoding_format=encoding_format, model="m", prompt_tokens=3)
    )

    embeddings = [entry.pop("embedding") for entry in body["data"]]
    assert len(embeddings) == 2
    assert body == {
        "data": [{"index": 0, "object": "embedding"}, {"index": 1, "object": "embedding"}],
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


def test_many_vectors_are_one_list_in_order() -> None:
    """They are written piece by piece, and nobody must see it."""
    vectors = np.arange(400, dtype=np.float32).reshape(200, 2)

    data = json.loads(write_response(vectors, encoding_format="float", model="m", prompt_tokens=3))[
        "data"
    ]

    assert [entry["index"] for entry in data] == list(range(200))
    assert [entry["embedding"] for entry in data] == vectors.tolist()
