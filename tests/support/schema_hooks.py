"""Hooks for schemathesis that cover what `/openapi.json` cannot express. schemathesis.toml loads this file."""

import os
from typing import Any

import schemathesis
from schemathesis import Case, HookContext

_ALIASES = (("input", "inputs"), ("truncate_direction", "truncation_direction"))


@schemathesis.hook
def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
    """Send the API key from EMBEDDINGS_API_KEY, if it is set."""
    if key := os.environ.get("EMBEDDINGS_API_KEY"):
        case.headers["x-api-key"] = key


@schemathesis.hook
def filter_case(_context: HookContext, case: Case[Any]) -> bool:
    """Drop bodies that send a field and its alias with equal values.

    The server accepts such a body, but a schema cannot express that two values are equal.
    """
    body = case.body
    if not isinstance(body, dict):
        return True
    values = [(body.get(name), body.get(other)) for name, other in _ALIASES]
    return not any(one is not None and one == other for one, other in values)
