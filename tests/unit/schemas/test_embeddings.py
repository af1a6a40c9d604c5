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
    """Parse a body, and return the request or the error."""
    try:
        return parse_request(body)
    except InvalidRequestError as error:
        return error


@given(bodies)
def test_any_json_gives_a_request_or_an_error_without_its_text(body: Any) -> None:
    result = outcome(json.dumps(body).encode())

    if isinstance(result, InvalidRequestError):
        assert MARKER not in f"{result.message} {result.code} {result.param}"
    else:
        assert result.items


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_give_a_request_or_an_error(body: bytes) -> None:
    result = outcome(body)

    assert isinstance(result, EmbeddingRequest | InvalidRequestError)


@pytest.mark.parametrize("cut", [1, 10, 24])
def test_the_error_for_truncated_json_does_not_quote_it(cut: int) -> None:
    body = json.dumps({"input": MARKER * 3}).encode()[:-cut]

    result = outcome(body)

    assert isinstance(result, InvalidRequestError)
    assert result.code == "invalid_json"
    assert MARKER not in result.message


def test_deeply_nested_json_is_rejected() -> None:
    """It must not exhaust the stack."""
    result = outcome(b'{"input": ' + b"[" * 100_000)

    assert isinstance(result, InvalidRequestError)
    assert result.code == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true"])
def test_json_other_than_an_object_is_rejected(body: bytes) -> None:
    result = outcome(body)

    assert isinstance(result, InvalidRequestError)
    assert (result.code, result.param) == ("invalid_json", None)


@given(st.sets(st.sampled_from([*EmbeddingRequest.model_fields])))
def test_null_means_absent(fields: set[str]) -> None:
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
def test_a_field_of_the_wrong_type_is_named(field: str, value: object) -> None:
    result = outcome(json.dumps({"input": "a", field: value}).encode())

    assert isinstance(result, InvalidRequestError)
    assert (result.code, result.param) == (f"invalid_{field}", field)


def test_unknown_fields_are_ignored() -> None:
    """Clients send fields of later API versions and of other servers."""
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
def test_items_is_always_a_list(
    sent: object,
    items: object,
    is_single: bool,  # noqa: FBT001
) -> None:
    request = build_request(input=sent)

    assert request.items == items
    assert request.is_single is is_single


def test_inputs_is_an_alias_of_input() -> None:
    assert build_request(inputs=["a"]).items == build_request(input=["a"]).items


def test_input_and_inputs_may_both_have_the_same_value() -> None:
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
def test_a_field_and_its_alias_must_agree(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(**fields)

    assert (error.value.code, error.value.param) == ("ambiguous", param)


def test_input_is_required() -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(model="a")

    assert (error.value.code, error.value.param) == ("missing_input", "input")


@pytest.mark.parametrize("name", ["truncate_direction", "truncation_direction"])
@pytest.mark.parametrize("value", ["left", "Left"])
def test_truncate_direction_has_an_alias_and_ignores_case(name: str, value: str) -> None:
    """TEI names the field `truncation_direction` and capitalizes its values."""
    assert build_request(input="a", **{name: value}).direction == "left"


def test_truncate_direction_defaults_to_right() -> None:
    assert build_request(input="a").direction == "right"


# Words and texts of other dialects.


@pytest.mark.parametrize(
    ("sent", "truncates", "direction"),
    [
        (None, None, "right"),
        (True, True, "right"),
        (False, False, "right"),
        ("NONE", False, "right"),
        ("END", True, "right"),
        ("START", True, "left"),
        ("start", True, "left"),
        ("End", True, "right"),
    ],
)
def test_truncate_may_be_a_word(sent: object, truncates: bool | None, direction: str) -> None:  # noqa: FBT001
    """NVIDIA's and Cohere's clients send one, with an `input_type`, in every request."""
    body = json.dumps({"input": ["hello"], "input_type": "query", "truncate": sent}).encode()

    request = parse_request(body)

    assert (request.truncates, request.direction) == (truncates, direction)


@pytest.mark.parametrize("sent", ["middle", "", "NONE ", 0, 1, ["END"], 1.0])
def test_another_word_is_rejected_with_the_words_there_are(sent: object) -> None:
    result = outcome(json.dumps({"input": "a", "truncate": sent}).encode())

    assert isinstance(result, InvalidRequestError)
    assert (result.code, result.param) == ("invalid_truncate", "truncate")
    assert result.message == "truncate must be true, false, or one of NONE, END, START."


@pytest.mark.parametrize("field", ["truncate_direction", "truncation_direction"])
@pytest.mark.parametrize(
    ("word", "direction", "passes"),
    [
        ("END", "right", True),
        ("START", "left", True),
        ("NONE", "left", True),
        ("END", "left", False),
        ("START", "Right", False),
    ],
)
def test_a_direction_must_not_contradict_the_word(
    field: str,
    word: str,
    direction: str,
    passes: bool,  # noqa: FBT001
) -> None:
    result = outcome(json.dumps({"input": "a", "truncate": word, field: direction}).encode())

    if passes:
        assert isinstance(result, EmbeddingRequest)
        assert result.direction == direction
    else:
        assert isinstance(result, InvalidRequestError)
        assert (result.code, result.param) == ("ambiguous", field)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (rb'{"input": ["fine", "cut \ud83d", "fine"]}', "invalid_input", "input[1]"),
        (rb'{"inputs": "\uDE00 cut"}', "invalid_inputs", "inputs"),
        (rb'{"input": ["\ud83d\ud83d"]}', "invalid_input", "input[0]"),
        (rb'{"input": "a", "model": "\ud83d"}', "invalid_model", "model"),
        (rb'{"input": "a", "user": "\ud83d"}', "invalid_user", "user"),
        (rb'{"input": "a", "other": "\ud83d"}', "invalid_json", None),
        (rb'{"input": ["\ud83d", }', "invalid_json", None),
        (rb'["\ud83d"]', "invalid_json", None),
        (b"[" * 100_000 + rb'"\ud83d"', "invalid_json", None),
    ],
)
def test_half_of_a_character_is_rejected_by_name(body: bytes, code: str, param: str | None) -> None:
    result = outcome(body)

    assert isinstance(result, InvalidRequestError)
    assert (result.code, result.param) == (code, param)
    if param:
        assert result.message.startswith(f"{param} contains half of a character")


def test_a_python_caller_s_half_of_a_character_is_rejected_by_name() -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(input=["fine", "cut \ud83d"])

    assert (error.value.code, error.value.param) == ("invalid_input", "input[1]")


@pytest.mark.parametrize("escaped", [rb"\ud83d\ude00", rb"\u00e9", rb"\\ud83d"])
def test_whole_characters_may_be_escaped(escaped: bytes) -> None:
    assert parse_request(b'{"input": "%b"}' % escaped).items


def test_python_callers_get_the_same_errors_as_http_clients() -> None:
    with pytest.raises(InvalidRequestError) as error:
        build_request(input="a", dimensions="8")

    over_http = outcome(b'{"input": "a", "dimensions": "8"}')
    assert isinstance(over_http, InvalidRequestError)
    assert vars(error.value) == vars(over_http)


def test_a_byte_order_mark_is_ignored() -> None:
    """Some editors and shells write one before the JSON."""
    request = parse_request(b'\xef\xbb\xbf{"input": "a"}')

    assert request.items == ["a"]
