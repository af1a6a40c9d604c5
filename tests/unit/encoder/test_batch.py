import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.encoder.batch import Batch, Indices
from serve_app.encoder.padding import gather, pad
from serve_app.messages import Failure, TokenizedInputs

LENGTHS = st.lists(st.integers(0, 30), max_size=12)


def chunk(*inputs: list[int], prompt_length: int = 0) -> TokenizedInputs:
    """Return the inputs of a chunk."""
    ids = np.array([number for ids in inputs for number in ids], np.int32)
    return TokenizedInputs(ids, np.array([len(ids) for ids in inputs], np.int32), prompt_length)


def passes(batch: Batch, *, budget: int, mixes_prompts: bool = True) -> list[Indices]:
    """Cut all inputs of a batch into forward passes."""
    readable = np.ones(len(batch.lengths), np.bool_)
    return list(
        batch.passes(readable, max_batch_tokens=budget, pass_tokens=5, mixes_prompts=mixes_prompts)
    )


def test_chunks_are_joined_in_order() -> None:
    batch = Batch([chunk([1, 2], [3]), chunk([4, 5, 6])], dimensions=2)

    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.lengths.tolist() == [2, 1, 3]
    assert batch.starts.tolist() == [0, 2, 3]


def test_an_empty_batch_has_no_results() -> None:
    batch = Batch([], dimensions=2)

    encoded = batch.result(inference_s=0.5)

    assert passes(batch, budget=10) == []
    assert encoded.vectors.shape == (0, 2)
    assert encoded.failures == ()


@given(chunks=st.lists(LENGTHS, max_size=4), budget=st.integers(1, 60))
def test_passes_cover_every_input_once_within_the_budget(
    chunks: list[list[int]], budget: int
) -> None:
    batch = Batch([chunk(*([7] * n for n in lengths)) for lengths in chunks], dimensions=1)

    cut = passes(batch, budget=budget)

    assert sorted(n for indices in cut for n in indices) == list(range(len(batch.lengths)))
    for indices in cut:
        lengths = batch.lengths[indices].tolist()
        assert lengths == sorted(lengths, reverse=True)
        assert len(indices) == 1 or lengths[0] * len(indices) <= budget


def test_prompts_of_different_lengths_may_need_separate_passes() -> None:
    """A pooling that excludes the prompt takes one prompt length for a whole forward pass."""
    chunks = [
        chunk([1], [2], prompt_length=0),
        chunk([3], prompt_length=4),
        chunk([4], prompt_length=0),
    ]
    batch = Batch(chunks, dimensions=1)

    apart = passes(batch, budget=100, mixes_prompts=False)
    together = passes(batch, budget=100, mixes_prompts=True)

    assert [indices.tolist() for indices in apart] == [[0, 1, 3], [2]]
    assert [indices.tolist() for indices in together] == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("may_be_empty", "expected"), [(True, [1, 3]), (False, [1, 2, 3])])
def test_inputs_the_model_cannot_read_are_marked(
    *, may_be_empty: bool, expected: list[int]
) -> None:
    batch = Batch([chunk([0, 9], [10, 1], [], [1, -1], [3])], dimensions=1)

    unreadable = batch.unreadable(vocabulary_size=10, may_be_empty=may_be_empty)

    assert np.flatnonzero(unreadable).tolist() == expected


def test_results_are_stored_in_input_order() -> None:
    batch = Batch([chunk([1], [2, 2], [3, 3, 3])], dimensions=2)
    vectors = np.array([[3, 3], [np.nan, 1]], np.float32)

    batch.keep(np.array([2, 0]), vectors, np.array([True, False]))
    batch.fail(np.array([1]), "inference_failed")

    encoded = batch.result(inference_s=0.5)
    assert encoded.vectors.tolist() == [[0, 0], [0, 0], [3, 3]]
    assert encoded.failures == (Failure(0, "non_finite_embedding"), Failure(1, "inference_failed"))
    assert encoded.padded_tokens.tolist() == [3, 0, 3]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_selected_inputs_are_gathered_and_padded(lengths: list[int], data: st.DataObject) -> None:
    inputs = [[10 * n + m for m in range(length)] for n, length in enumerate(lengths)]
    batch = Batch([chunk(*inputs)], dimensions=1)
    selected = np.array(
        data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    )

    selected_lengths = batch.lengths[selected].astype(np.int64)
    ids = gather(batch.ids, batch.starts[selected], selected_lengths)
    starts = np.cumsum(selected_lengths) - selected_lengths

    ids, mask = pad(ids, starts, selected_lengths, pad_id=-7)

    assert ids.dtype == mask.dtype == np.int64
    for row, mask_row, n in zip(ids.tolist(), mask.tolist(), selected, strict=True):
        padding = max(lengths[m] for m in selected) - lengths[n]
        assert row == inputs[n] + [-7] * padding
        assert mask_row == [1] * lengths[n] + [0] * padding


def test_unpadded_inputs_are_cut_by_their_own_tokens() -> None:
    batch = Batch([chunk([1] * 9, [2], [3], [4] * 9, [5])], dimensions=1, pads=False)

    runs = passes(batch, budget=11)
    for run in runs:
        batch.keep(run, np.ones((len(run), 1), np.float32), np.ones(len(run), np.bool_))

    assert [run.tolist() for run in runs] == [[0, 1, 2], [3, 4]]
    assert batch.result(inference_s=0.5).padded_tokens.tolist() == [9, 1, 1, 9, 1]
