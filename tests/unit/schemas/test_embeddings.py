import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequestError
from serve_app.schemas.embeddings import EmbeddingRequest, build_request, parse_request

MARKER = "xyzzy"

texts = st.text(max_size=8).map(lambda text: MARKER + text)
names = st.sampled_from([*EmbeddingRequest.model_fields, "other"]) | texts
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)
bodies = values | st.dictionaries(names, values, max_size=6)


def outcome(body: bytes) -> EmbeddingRequest | InvalidRequestError:
    """Return the request or the one error that a body may give."""
    try:
        return parse_request(body)
    except InvalidRequestError as error:
        return error


@given(bodies)
def test_any_json_is_a_request_or_an_error_that_does_not_quote_it(body: Any) -> None:
    """No body gives another exception, and no error holds what the client sent."""
    result = outcome(json.dumps(body).encode())

    if isinstance(result, InvalidRequestError):
        assert MARKER not in f"{result.message} {result.code} {result.param}"
    else:
        assert result.items


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    """What is no JSON at all is an error like any other."""
    result = outcome(body)

    assert isinstance(result, EmbeddingRequest | InvalidRequestError)


@pytest.mark.parametrize("cut", [1, 10, 24])
def test_broken_json_is_not_quoted(cut: int) -> None:
    """A body cut off in the middle of a text gives the place and not the text."""
    body = json.dumps({"input": MARKER * 3}).encode()[:-cut]

    result = outcome(body)

    assert isinstance(result, InvalidRequestError)
    assert result.code == "invalid_json"
    assert MARKER not in result.message


def test_json_that_is_nested_without_end_is_an_error() -> None:
    """It must not exhaust the stack."""
    result = outcome(b'{"input": ' + b"[" * 100_000)

    assert isinstance(result, InvalidRequestError)
    assert result.code == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_an_error(body: bytes) -> None:
    """The request's fields need a place to stand in."""
    result = outcome(body)

    assert isinstance(result, InvalidRequestError)
    assert (result.code, result.param) == ("invalid_json", None)


@given(st.sets(st.sampled_from([*EmbeddingRequest.model_fields])))
def test_null_means_absent(fields: set[str]) -> None:
    """Whichever fields are null, the request is the one without them."""
    body = {"input": "a", **dict.fromkeys(fields - {"input"})}

    assert outcome(json.dumps(body).encode()) == parse_request(b'{"input": "a"}')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("model", ["a"]),
        ("encoding_format", "hex"),
        ("encoding_format", 1),
        ("dimensions", 0),
        ("dimensions", -1),
        ("dimensions", "8"),
        ("dimensions", 8.5),
        ("dimensions", True),
        ("user", 5),
        ("normalize", "yes"),
        ("normalize", 1),
        ("prompt_name", 5),
        ("truncate", 0),
        ("truncate_direction", "middle"),
        ("truncation_direction", "middle"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(field: str, value: object) -> None:
    """Nothing is converted: `"8"` is no number and 1 is no truth value."""
    result = outcome(json.dumps({"input": "a", field: value}).encode())

    assert isinstance(result, InvalidRequestError)
    assert (result.code, result.param) == (f"invalid_{field}", field)


def test_a_field_nobody_knows_is_ignored() -> None:
    """Clients send fields of later versions and of other servers."""
    request = build_request(input="a", service_tier="flex")

    assert request == build_request(input="a")


@pytest.mark.parametrize(
    ("sent", "items", "is_single"),
    [
        ("a", ["a"], True),
        (["a", "b"], ["a", "b"], False),
        ([1, 2], [[1, 2]], True),
        ([[1, 2], [3]], [[1, 2], [3]], False),
    ],
)
def test_inputs_are_a_list_whichever_way_they_were_sent(
    sent: object,
    items: object,
    is_single: bool,  # noqa: FBT001
) -> None:
    """A text is a list of one, and a flat list of integers is one input."""
    request = build_request(input=sent)

    assert request.items == items
    assert request.is_single is is_single


def test_either_name_of_the_inputs_does() -> None:
    """The page uses both."""
    assert build_request(inputs=["a"]).items == build_request(input=["a"]).items


def test_both_names_with_the_same_inputs_are_one_request() -> None:
    """A client that cannot decide says nothing wrong."""
    assert build_request(input="a", inputs="a").items == ["a"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a", "inputs": "b"}, "inputs"),
        ({"input": "a", "inputs": ["a"]}, "inputs"),
        ({"input": "a", "truncate_direction": "left", "truncation_direction": "right"},
         "truncation_direction"),
    ],
)  # fmt: skip
def test_two_names_of_one_field_that_disagree_are_an_error(
    fields: dict[str, object], param: str
) -> None:
    """Either would be a guess."""
    with pytest.raises(InvalidRequestError) as error:
        build_request(**fields)

    assert (error.value.code, error.value.param) == ("ambiguous", param)


def test_without_inputs_there_is_no_request() -> None:
    """`input` is the one field that is required."""
    with pytest.raises(InvalidRequestError) as error:
        build_request(model="a")

    assert (error.value.code, error.value.param) == ("missing_input", "input")


@pytest.mark.parametrize("name", ["truncate_direction", "truncation_direction"])
@pytest.mark.parametrize("value", ["left", "Left"])
def test_the_side_that_is_cut_has_two_names_and_two_spellings(name: str, value: str) -> None:
    """TEI calls the field otherwise and capitalizes."""
    assert build_request(input="a", **{name: value}).direction == "left"


def test_the_right_side_is_cut_unless_a_client_says_otherwise() -> None:
    """The page's default."""
    assert build_request(input="a").direction == "right"


def test_a_wrong_field_from_python_is_the_same_error_as_over_http() -> None:
    """Callers of the handle read the codes that HTTP clients read."""
    with pytest.raises(InvalidRequestError) as error:
        build_request(input="a", dimensions="8")

    over_http = outcome(b'{"input": "a", "dimensions": "8"}')
    assert isinstance(over_http, InvalidRequestError)
    assert vars(error.value) == vars(over_http)


def test_a_byte_order_mark_is_no_error() -> None:
    """Some editors and shells write one before the JSON."""
    request = parse_request(b'\xef\xbb\xbf{"input": "a"}')

    assert request.items == ["a"]
