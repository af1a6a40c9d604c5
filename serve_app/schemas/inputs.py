"""What a client may send as its inputs: one text or many, the token ids of one input or of many.

Checks kinds and emptiness, which need no model, and names the item at fault. Knows nothing of other fields.
"""

from itertools import chain
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo, WithJsonSchema

from serve_app.errors import InvalidRequestError

Texts = list[str]
TokenIdLists = list[list[int]]


def plain(value: Any, *, depth: int = 2) -> Any:
    """Make JSON's kinds of what Python callers send: tuples, subclasses of str, numpy's arrays and scalars.

    Args:
        value: what a caller sent for a field.
        depth: how many lists may stand in each other; what is deeper stays as it is.
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
    """Make an integer of a number like 7.0: to JSON both are the same, and some languages write all numbers so."""
    return int(value) if type(value) is float and value.is_integer() else value


# What an item can be, in words for errors. Exact types: a bool is no token id, though Python calls it an int.
_KINDS: dict[type, str] = {str: "a string", int: "an integer", list: "a list"}


def _check_inputs(value: Any, info: ValidationInfo) -> Any:
    """Check an `input` at C speed, and look for the item at fault only where there is one.

    Not left to pydantic's unions: they try every kind and note every item that does not fit, which took 3.5 s and
    0.8 GB for 8 MB of token ids.
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
        most = (info.context or {}).get("most_inputs")
        return _checked_items(value, param, most)
    return value


def _checked_items(items: list[Any], param: str, most: int | None) -> list[Any]:
    """Check that all items are of one kind, that none is empty, and that lists hold integers."""
    kinds = set(map(type, items))
    if float in kinds:
        items = [whole(item) for item in items]
        kinds = set(map(type, items))
    if len(kinds) > 1 or not kinds <= _KINDS.keys():
        raise _kind_error(items, param)
    if kinds != {int} and not all(items):
        at = f"{param}[{next(index for index, item in enumerate(items) if not item)}]"
        raise InvalidRequestError(f"{at} is empty.", "empty_input", at)
    if kinds != {list} or (most is not None and len(items) > most):
        return items  # too many are refused later; a million lists are not looked into before
    return _checked_lists(items, param)


def _checked_lists(lists: list[list[Any]], param: str) -> list[list[int]]:
    kinds = set(map(type, chain.from_iterable(lists)))
    if float in kinds and kinds <= {int, float}:
        lists = [[whole(number) for number in ids] for ids in lists]
        kinds = set(map(type, chain.from_iterable(lists)))
    if kinds == {int}:
        return lists
    index = next(index for index, ids in enumerate(lists) if set(map(type, ids)) != {int})
    at = f"{param}[{index}]"
    message = f"{at} holds a token id that is no integer."
    if str in map(type, lists[index]):
        message = f"{at} is a list with a string; send one list, whose items are the texts."
    raise InvalidRequestError(message, "invalid_token_id", at)


def _kind_error(items: list[Any], param: str) -> InvalidRequestError:
    """Name the first item that does not belong into the list."""
    first = type(items[0])
    index, kind = next(
        (index, kind)
        for index, kind in enumerate(map(type, items))
        if kind not in _KINDS or kind is not first
    )
    at = f"{param}[{index}]"
    if kind not in _KINDS:
        message = f"{at} must be a string, an integer token id, or a list of them."
        return InvalidRequestError(message, "invalid_type", at)
    message = f"{at} is {_KINDS[kind]} and {param}[0] is {_KINDS[first]}; send a list of one kind."
    return InvalidRequestError(message, "mixed_types", at)


Inputs = Annotated[
    str | Texts | list[int] | TokenIdLists | None,
    PlainValidator(_check_inputs),
    WithJsonSchema({}),  # made exact in request_schema.py
]
