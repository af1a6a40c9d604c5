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
def test_valid_inputs_are_unchanged(value: Any) -> None:
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
def test_errors_name_the_item_at_fault(value: Any, code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(input=value)

    assert (error.value.code, error.value.param) == (code, param)


def test_the_first_of_several_faults_is_named() -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(input=["a", 1, None])

    assert error.value.param == "input[1]"


class Marked(str):
    """A subclass of str, as markup libraries define them."""


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
    assert build_request(input=value).input == expected


def test_python_callers_may_send_numpy_scalars() -> None:
    (no,) = np.array([False])

    request = build_request(input="a", dimensions=np.int64(5), normalize=no)

    assert (request.dimensions, request.normalize) == (5, False)


def test_a_list_that_contains_itself_is_rejected() -> None:
    value: list[object] = []
    value.append(value)

    with pytest.raises(InvalidRequestError):
        build_request(input=value)


@pytest.mark.parametrize("value", [5, b"a", {"a"}, {"a": 1}, object(), np.array([1.5])])
def test_other_python_types_are_rejected_as_invalid_type(value: object) -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(input=value)

    assert error.value.code == "invalid_type"


def test_zero_is_a_token_id() -> None:
    """Zero is falsy, but not an empty item."""
    assert build_request(input=[0, 0]).input == [0, 0]


def test_errors_use_the_name_inputs_if_the_client_does() -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(inputs=["a", 1])

    assert error.value.param == "inputs[1]"


def test_a_huge_list_of_token_ids_is_checked_in_1_mb() -> None:
    ids = list(range(300_000))
    tracemalloc.start()

    try:
        build_request(input=ids)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1_000_000


def test_the_error_for_nested_lists_of_texts_says_what_to_send() -> None:
    """Some clients send each text as a batch of its own."""
    with pytest.raises(InvalidRequestError, match="one flat list"):
        build_request(input=[["a"], ["b"]])
