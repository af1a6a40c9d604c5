"""What schemathesis cannot learn from `/openapi.json`; schemathesis.toml names this file."""

import os
from typing import Any

import schemathesis
from schemathesis import Case, HookContext

_SAME = (("input", "inputs"), ("truncate_direction", "truncation_direction"))


@schemathesis.hook
def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
    """Send the key that the environment has, to a server that wants one."""
    if key := os.environ.get("EMBEDDINGS_API_KEY"):
        case.headers["x-api-key"] = key


@schemathesis.hook
def filter_case(_context: HookContext, case: Case[Any]) -> bool:
    """Leave out a field sent twice with one value, which is taken: a schema cannot say that two values are equal."""
    body = case.body
    if not isinstance(body, dict):
        return True
    values = [(body.get(name), body.get(other)) for name, other in _SAME]
    return not any(one is not None and one == other for one, other in values)
