import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.messages import Vectors
from serve_app.service.postprocess import finish
from tests.support.strategies import vectors


@given(vectors, st.data())
def test_dimensions_keeps_the_first_components(vectors: Vectors, data: st.DataObject) -> None:
    dimensions = data.draw(st.none() | st.integers(1, vectors.shape[1]))

    finished = finish(vectors, dimensions=dimensions, normalize=False)

    assert finished.tobytes() == vectors[:, :dimensions].tobytes()


@given(vectors, st.data())
def test_rows_have_unit_length_after_truncation(vectors: Vectors, data: st.DataObject) -> None:
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
    finished = finish(vectors, dimensions=None, normalize=True)

    assert np.isfinite(finished).all()


def test_a_row_of_zeros_is_unchanged() -> None:
    finished = finish(np.zeros((1, 3), np.float32), dimensions=None, normalize=True)

    assert finished.tolist() == [[0, 0, 0]]


@given(vectors)
def test_finish_does_not_modify_its_input(vectors: Vectors) -> None:
    """The buffer comes from another process and may be read-only."""
    before = vectors.tobytes()
    vectors.setflags(write=False)

    finish(vectors, dimensions=1, normalize=True)

    assert vectors.tobytes() == before
