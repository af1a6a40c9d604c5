"""The JSON of errors, in the flat shape and in OpenAI's."""

from typing import Literal

from serve_app.schemas.base import Answer


class ErrorBody(Answer):
    """An error in the flat shape. The last four fields are those of OpenAI's error object."""

    error: str
    error_type: Literal[
        "validation", "authentication", "backend", "overloaded", "unavailable", "internal"
    ]
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Answer):
    """The error object inside OpenAI's envelope."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(Answer):
    """An error in OpenAI's envelope. Sent to OpenAI's SDKs, or to all clients with `error_format: openai`."""

    error: OpenAIError
