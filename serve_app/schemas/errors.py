"""The JSON of errors, in the flat format and in OpenAI's format."""

from typing import Literal

from serve_app.schemas.base import Answer


class ErrorBody(Answer):
    """An error in the flat format: one object. Its last four fields are those of OpenAI's error object."""

    error: str
    error_type: Literal[
        "validation", "authentication", "backend", "overloaded", "unavailable", "internal"
    ]
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Answer):
    """The error object that OpenAI's format contains under the key `error`."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(Answer):
    """An error in OpenAI's format: an error object under the key `error`.

    OpenAI's SDKs receive this format with `error_format: auto`, and all clients with `error_format: openai`.
    """

    error: OpenAIError
