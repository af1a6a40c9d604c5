"""The exception tree: everything that can go wrong with a request, each with its place on the wire.

Fields, not formatting: `status`, `error` and `error_type` are the page's words, `openai_type` and `code` are
OpenAI's, `param` names the field (`input[3]` the item). Every class can be pickled, so an error that is raised in a
replica arrives whole at a `DeploymentHandle`. Knows nothing of HTTP frameworks, Ray or pydantic.

No message may hold an input's text, a key or a path: messages are sent to clients and written to logs.
"""

from typing import ClassVar, Self, SupportsIndex


class ServiceError(Exception):
    """What every error of this project is; never raised itself."""

    status: ClassVar[int] = 500
    error: ClassVar[str] = "Internal error"
    error_type: ClassVar[str] = "internal"
    openai_type: ClassVar[str] = "server_error"
    # Whether a client that sends the same request again may be answered. OpenAI's SDKs retry 408, 409, 429 and 5xx
    # unless `x-should-retry: false` says not to.
    may_retry: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code, param, retry_after_s)
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[type[Self], tuple[object, ...]]:
        """Pickle as the class of this module, also where Ray raises a subclass that it has just made for a caller."""
        kind = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
        return kind, self._arguments()

    def _arguments(self) -> tuple[object, ...]:
        return self.message, self.code, self.param, self.retry_after_s


class InvalidRequestError(ServiceError):
    """400: malformed JSON, a wrong or missing field, an empty input, an unknown prompt."""

    status = 400
    error = "Invalid request"
    error_type = "validation"
    openai_type = "invalid_request_error"


class UnauthorizedError(ServiceError):
    """401: keys are configured, and none of them was sent."""

    status = 401
    error = "Unauthorized"
    error_type = "authentication"
    openai_type = "invalid_request_error"


class NotFoundError(ServiceError):
    """404: no such path."""

    status = 404
    error = "Not found"
    error_type = "validation"
    openai_type = "invalid_request_error"


class ModelNotFoundError(NotFoundError):
    """404: no such model."""

    error = "Model not found"


class MethodNotAllowedError(ServiceError):
    """405: the path exists, for another method; `allow` is the value of the header that says which."""

    status = 405
    error = "Method not allowed"
    error_type = "validation"
    openai_type = "invalid_request_error"

    def __init__(self, allow: str) -> None:
        super().__init__(f"This path takes {allow}.", "method_not_allowed")
        self.allow = allow

    def _arguments(self) -> tuple[object, ...]:
        return (self.allow,)


class RequestTimeoutError(ServiceError):
    """408: the body did not arrive in time."""

    status = 408
    error = "Request timeout"
    error_type = "validation"
    openai_type = "invalid_request_error"


class BatchSizeError(ServiceError):
    """413: too many inputs, or too many tokens in all."""

    status = 413
    error = "Batch size error"
    error_type = "validation"
    openai_type = "invalid_request_error"


class PayloadTooLargeError(ServiceError):
    """413: the body is over the limit."""

    status = 413
    error = "Payload too large"
    error_type = "validation"
    openai_type = "invalid_request_error"


class TokenizationError(ServiceError):
    """422: an input is longer than the model reads, or cannot be tokenized."""

    status = 422
    error = "Tokenization error"
    error_type = "validation"
    openai_type = "invalid_request_error"


class InferenceError(ServiceError):
    """424: the model raised on an input, ran out of memory on it alone, or gave a vector that is not finite."""

    status = 424
    error = "Inference failed"
    error_type = "backend"


class NotAnEmbeddingModelError(ServiceError):
    """424: the model is served but does not embed."""

    status = 424
    error = "Model is not an embedding model"
    error_type = "backend"
    openai_type = "invalid_request_error"


class OverloadedError(ServiceError):
    """429: no room, whichever limit was met."""

    status = 429
    error = "Model is overloaded"
    error_type = "overloaded"
    openai_type = "rate_limit_error"


class InternalError(ServiceError):
    """500: our bug."""

    may_retry = False


class UnavailableError(ServiceError):
    """503: no replica answers: it starts, failed, or was scaled to zero."""

    status = 503
    error = "Model is unavailable"
    error_type = "unavailable"


class DeadlineError(ServiceError):
    """504: the server's own deadline passed."""

    status = 504
    error = "Deadline exceeded"
    error_type = "unavailable"


class ModelLoadError(Exception):
    """A model cannot be loaded; the message says which file or setting is at fault. Never sent to a client."""
