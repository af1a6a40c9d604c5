"""The type of the `input` field: one text, a list of texts, the token ids of one input, or a list of those.

This module checks that the inputs have valid types and that none is empty. These checks do not need a model. Errors
name the item at fault. The module does not depend on any other field of a request.
"""

from itertools import chain
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo, WithJsonSchema

from serve_app.errors import InvalidRequestError

Texts = list[str]
TokenIdLists = list[list[int]]


def plain(value: Any, *, depth: int = 2) -> Any:
    """Convert a Python caller's value to JSON types: tuples, subclasses of str, NumPy arrays and scalars.

    Args:
        value: the value of a request field.
        depth: the number of list levels to convert; deeper values are left unchanged.
    """
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if not isinstance(value, list | tuple) or not depth:
        return value
    if set(map(type, value)) <= {str, int}:
        return value if isinstance(value, list) else list(value)
    return [plain(item, depth=depth - 1) for item in value]


def whole(value: Any) -> Any:
    """Convert a float such as 7.0 to an integer. JSON has one number type, and some languages write 7 as 7.0."""
    return int(value) if type(value) is float and value.is_integer() else value


# The types of an item, as errors name them. Types must match exactly: a bool is an int in Python, but not a token id.
_KINDS: dict[type, str] = {str: "a string", int: "an integer", list: "a list"}


def _check_inputs(value: Any, info: ValidationInfo) -> Any:
    """Validate `input` or `inputs`.

    The checks run at C speed. The item at fault is searched for only after a check has failed.

    This replaces pydantic's unions. They try every type and record an error for every item that does not match, which
    took 3.5 s and 0.8 GB for 8 MB of token ids.
    """
    param = str(info.field_name)
    if value is None:
        return None
    if not isinstance(value, str | list):
        message = f"{param} must be a string, a list of strings, or token ids."
        raise InvalidRequestError(message, "invalid_type", param)
    if not value:
        raise InvalidRequestError(
            f"{param} is empty; send at least one text.", "empty_input", param
        )
    if isinstance(value, list):
        return _check_items(value, param, (info.context or {}).get("most_inputs"))
    return value


def _check_items(items: list[Any], param: str, most_inputs: int | None) -> list[Any]:
    """Check that all items have the same type, that none is empty, and that nested lists contain integers."""
    kinds = set(map(type, items))
    if float in kinds:
        items = [whole(item) for item in items]
        kinds = set(map(type, items))
    if len(kinds) > 1 or not kinds <= _KINDS.keys():
        raise _type_error(items, param)
    if kinds != {int} and not all(items):
        index = next(index for index, item in enumerate(items) if not item)
        raise InvalidRequestError("{item} is empty.", "empty_input", param, index=index)
    if kinds != {list}:
        return items
    if most_inputs is not None and len(items) > most_inputs:
        return items  # the caller rejects the request; to check a million lists would take long
    return _check_lists(items, param)


def _check_lists(lists: list[list[Any]], param: str) -> list[list[int]]:
    kinds = set(map(type, chain.from_iterable(lists)))
    if float in kinds and kinds <= {int, float}:
        lists = [[whole(number) for number in ids] for ids in lists]
        kinds = set(map(type, chain.from_iterable(lists)))
    if kinds == {int}:
        return lists
    index = next(index for index, ids in enumerate(lists) if set(map(type, ids)) != {int})
    message = "{item} contains a token id that is not an integer."
    if str in map(type, lists[index]):
        message = "{item} is a list that contains a string. Send the texts as one flat list."
    raise InvalidRequestError(message, "invalid_token_id", param, index=index)


def _type_error(items: list[Any], param: str) -> InvalidRequestError:
    """Return the error for the first item whose type is invalid or differs from that of the first item."""
    first = type(items[0])
    index, kind = next(
        (index, kind)
        for index, kind in enumerate(map(type, items))
        if kind not in _KINDS or kind is not first
    )
    if kind not in _KINDS:
        message = "{item} must be a string, an integer token id, or a list of token ids."
        return InvalidRequestError(message, "invalid_type", param, index=index)
    message = (
        f"{{item}} is {_KINDS[kind]}, but the first item is {_KINDS[first]}. "
        "All items must have the same type."
    )
    return InvalidRequestError(message, "mixed_types", param, index=index)


Inputs = Annotated[
    str | Texts | list[int] | TokenIdLists | None,
    PlainValidator(_check_inputs),
    WithJsonSchema({}),  # `api/openapi/request_schema.py` fills in the schema
]
