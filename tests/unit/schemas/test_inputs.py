import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequestError
from serve_app.schemas.embeddings import build_request

texts = st.lists(st.text(min_size=1), min_size=1, max_size=5)
ids = st.lists(st.integers(), min_size=1, max_size=5)


@given(st.one_of(st.text(min_size=1), texts, ids, st.lists(ids, min_size=1, max_size=5)))
def test_the_four_kinds_of_inputs_pass_unchanged(value: Any) -> None:
    """A text, texts, the token ids of one input and of many."""
    assert build_request(input=value).input == value


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ("", "empty_input", "input"),
        ([], "empty_input", "input"),
        (["a", ""], "empty_input", "input[1]"),
        ([[]], "empty_input", "input[0]"),
        ([[1], []], "empty_input", "input[1]"),
        (5, "invalid_type", "input"),
        (True, "invalid_type", "input"),
        ({"text": "a"}, "invalid_type", "input"),
        (["a", None], "invalid_type", "input[1]"),
        ([1, 2.5], "invalid_type", "input[1]"),
        ([1, True], "invalid_type", "input[1]"),
        ([True], "invalid_type", "input[0]"),
        (["a", 1], "mixed_types", "input[1]"),
        (["a", "b", ["c"]], "mixed_types", "input[2]"),
        ([[1], 1], "mixed_types", "input[1]"),
        ([[1], ["a"]], "invalid_token_id", "input[1]"),
        ([[1, False]], "invalid_token_id", "input[0]"),
        ([[[1]]], "invalid_token_id", "input[0]"),
    ],
)
def test_what_is_wrong_is_named(value: Any, code: str, param: str) -> None:
    """The first item at fault, and what is wrong with it."""
    with pytest.raises(InvalidRequestError) as error:
        build_request(input=value)

    assert (error.value.code, error.value.param) == (code, param)


def test_a_wrong_item_after_another_of_another_kind_is_not_passed_over() -> None:
    """Of two faults the first one is named."""
    with pytest.raises(InvalidRequestError) as error:
        build_request(input=["a", 1, None])

    assert error.value.param == "input[1]"


class Marked(str):
    """A kind of string, as libraries for markup have them."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("a", "b"), ["a", "b"]),
        (np.str_("a"), "a"),
        (np.array(["a", "b"]), ["a", "b"]),
        ([np.str_("a"), "b"], ["a", "b"]),
        (np.array([1, 2]), [1, 2]),
        ((1, 2), [1, 2]),
        ([np.int64(1), 2], [1, 2]),
        ([(1, 2), (3,)], [[1, 2], [3]]),
        ([np.array([1, 2]), [3]], [[1, 2], [3]]),
        (np.array([[1, 2]]), [[1, 2]]),
        ([Marked("a"), "b"], ["a", "b"]),
    ],
)
def test_python_callers_may_send_tuples_and_arrays(value: object, expected: object) -> None:
    """They become the lists that HTTP clients send."""
    assert build_request(input=value).input == expected


def test_python_callers_may_send_numpys_scalars() -> None:
    """For any field."""
    (no,) = np.array([False])

    request = build_request(input="a", dimensions=np.int64(5), normalize=no)

    assert (request.dimensions, request.normalize) == (5, False)


def test_a_list_that_holds_itself_is_our_error() -> None:
    """And not an endless descent."""
    value: list[object] = []
    value.append(value)

    with pytest.raises(InvalidRequestError):
        build_request(input=value)


@pytest.mark.parametrize("value", [5, b"a", {"a"}, {"a": 1}, object(), np.array([1.5])])
def test_python_callers_get_our_error_for_anything_else(value: object) -> None:
    """Not a TypeError from somewhere inside."""
    with pytest.raises(InvalidRequestError) as error:
        build_request(input=value)

    assert error.value.code == "invalid_type"


def test_zero_is_a_token_id() -> None:
    """It is falsy, and it is not empty."""
    assert build_request(input=[0, 0]).input == [0, 0]


def test_inputs_under_their_other_name_are_named_so() -> None:
    """A client that sends `inputs` finds `inputs` in the error."""
    with pytest.raises(InvalidRequestError) as error:
        build_request(inputs=["a", 1])

    assert error.value.param == "inputs[1]"


def test_a_huge_list_of_token_ids_is_checked_in_little_memory() -> None:
    """A body of millions of ids must not become millions of notes about what they are not."""
    ids = list(range(300_000))
    tracemalloc.start()

    try:
        build_request(input=ids)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1_000_000


def test_a_list_of_lists_of_texts_is_told_how_to_be_sent() -> None:
    """Some clients make a batch of each text."""
    with pytest.raises(InvalidRequestError, match="whose items are the texts"):
        build_request(input=[["a"], ["b"]])
