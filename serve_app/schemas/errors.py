"""The JSON of errors, in both shapes."""

from typing import Literal

from serve_app.schemas.base import Answer


class ErrorBody(Answer):
    """An error in the page's shape; the first two keys are the page's, the others OpenAI's, flat."""

    error: str
    error_type: Literal[
        "validation", "authentication", "backend", "overloaded", "unavailable", "internal"
    ]
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Answer):
    """What is inside OpenAI's envelope."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(Answer):
    """An error in OpenAI's envelope: sent to OpenAI's SDKs, or to all with `error_format: openai`."""

    error: OpenAIError
