"""The exceptions of this project, one class for each kind of failed request.

An error response has one of two formats. The flat format is one JSON object with the fields `error`, `error_type`,
`message`, `type`, `param` and `code`. OpenAI's format nests `message`, `type`, `param` and `code` in an object under
the key `error`. The attributes of an exception supply the values:

- `status` is the HTTP status.
- `error` and `error_type` are fields of the flat format.
- `openai_type` becomes the field `type` in both formats.
- `message` and `code` are fields of both formats.
- `param` is a field of both formats. It names the request field at fault, such as `input`, or the item, such as
  `input[3]`. It is written from `field` and `index`. Whoever raises an error sets these two, and writes `{item}` in the
  message where the name of the item belongs. The name itself is written only when the error leaves the server, because
  only there it is known what the client called the field (`named_as_sent`).

All classes can be pickled, so an error raised in a replica reaches a `DeploymentHandle` caller with all its fields.
This module does not depend on any HTTP framework, Ray or pydantic.

A message must never contain an input's text, an API key or a path, because messages are sent to clients and logged.
"""

from typing import ClassVar, Self, SupportsIndex


class ServiceError(Exception):
    """Base class of all errors that clients receive. This class is never raised directly."""

    status: ClassVar[int] = 500
    error: ClassVar[str] = "Internal error"
    error_type: ClassVar[str] = "internal"
    openai_type: ClassVar[str] = "server_error"
    # Whether the same request may succeed if it is sent again. OpenAI's SDKs retry after 408, 409, 429 and 5xx, unless
    # the response has the header `x-should-retry: false`.
    may_retry: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        code: str,
        field: str | None = None,
        *,
        index: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self._message = message
        self.code = code
        self.field = field
        self.index = index
        self.retry_after_s = retry_after_s

    @property
    def param(self) -> str | None:
        """The field or the item at fault, such as `input` or `input[3]`."""
        return self.field if self.index is None else f"{self.field}[{self.index}]"

    @property
    def message(self) -> str:
        """The explanation for people."""
        return self._message.replace("{item}", self.param or "")

    def __str__(self) -> str:
        return self.message

    def named_as_sent(self, field: str, *, is_single: bool) -> Self:
        """Name the inputs as the client named them.

        Args:
            field: the name of the field in which the client sent its inputs: `input` or `inputs`.
            is_single: whether the client sent one input without a list, which therefore has no index.
        """
        if self.field == "input":
            self.field = field
            self.index = None if is_single else self.index
        return self

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[object, ...]:
        """Pickle as the class in this module, even if the object is of a subclass that Ray created at run time.

        Ray's object holds the original error as its `cause`.
        """
        original = getattr(self, "cause", self)
        kind = type(original)
        return kind.__new__, (kind,), vars(original)


class InvalidRequestError(ServiceError):
    """400: malformed JSON, an invalid or missing field, an empty input, or an unknown prompt."""

    status = 400
    error = "Invalid request"
    error_type = "validation"
    openai_type = "invalid_request_error"


class UnauthorizedError(ServiceError):
    """401: API keys are configured, and the request contains none of them."""

    status = 401
    error = "Unauthorized"
    error_type = "authentication"
    openai_type = "invalid_request_error"


class NotFoundError(ServiceError):
    """404: the path does not exist."""

    status = 404
    error = "Not found"
    error_type = "validation"
    openai_type = "invalid_request_error"


class ModelNotFoundError(NotFoundError):
    """404: the model does not exist."""

    error = "Model not found"


class MethodNotAllowedError(ServiceError):
    """405: the path does not support this method. `allow` is the value of the `Allow` header."""

    status = 405
    error = "Method not allowed"
    error_type = "validation"
    openai_type = "invalid_request_error"

    def __init__(self, allow: str) -> None:
        super().__init__(f"Method not allowed. Allowed: {allow}.", "method_not_allowed")
        self.allow = allow


class RequestTimeoutError(ServiceError):
    """408: the head or the body did not arrive in time."""

    status = 408
    error = "Request timeout"
    error_type = "validation"
    openai_type = "invalid_request_error"


class BatchSizeError(ServiceError):
    """413: the request has too many inputs or too many tokens in total."""

    status = 413
    error = "Batch size error"
    error_type = "validation"
    openai_type = "invalid_request_error"


class PayloadTooLargeError(ServiceError):
    """413: the body is larger than the limit."""

    status = 413
    error = "Payload too large"
    error_type = "validation"
    openai_type = "invalid_request_error"


class UriTooLongError(ServiceError):
    """414: the target of the request is longer than the limit."""

    status = 414
    error = "URI too long"
    error_type = "validation"
    openai_type = "invalid_request_error"


class HeadersTooLargeError(ServiceError):
    """431: the head of the request is larger than the limit, or has too many headers."""

    status = 431
    error = "Request header fields too large"
    error_type = "validation"
    openai_type = "invalid_request_error"


class TokenizationError(ServiceError):
    """422: an input exceeds the model's context length or cannot be tokenized."""

    status = 422
    error = "Tokenization error"
    error_type = "validation"
    openai_type = "invalid_request_error"


class InferenceError(ServiceError):
    """424: for at least one input, the model failed.

    The model raised an exception, ran out of memory, or returned a vector that is not finite. Or two replicas died
    while they held the input.
    """

    status = 424
    error = "Inference failed"
    error_type = "backend"


class NotAnEmbeddingModelError(ServiceError):
    """424: the model is configured, but it is not an embedding model."""

    status = 424
    error = "Model is not an embedding model"
    error_type = "backend"
    openai_type = "invalid_request_error"


class OverloadedError(ServiceError):
    """429: a limit on concurrent requests, on request memory, on pending tokens or on queued calls is reached."""

    status = 429
    error = "Model is overloaded"
    error_type = "overloaded"
    openai_type = "rate_limit_error"


class InternalError(ServiceError):
    """500: a bug in this server."""

    may_retry = False


class UnavailableError(ServiceError):
    """503: no replica can take the request, for example because all replicas are still starting or have failed."""

    status = 503
    error = "Model is unavailable"
    error_type = "unavailable"


class DeadlineError(ServiceError):
    """504: the request exceeded the server's own deadline."""

    status = 504
    error = "Deadline exceeded"
    error_type = "unavailable"


class ModelLoadError(Exception):
    """A model cannot be loaded.

    The message names the file or setting at fault. It is never sent to a client.
    """
