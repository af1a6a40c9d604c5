"""The settings under `http:`: limits, timeouts, API keys, CORS origins and the error format.

This module does not import Ray.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from serve_app.config.deployments import Settings, undocumented

ErrorFormat = Literal["auto", "flat", "openai"]
# Default limit on the total size, in bytes, of the request bodies in one ingress replica. If
# `max_body_bytes` is larger, it is used as the limit instead.
_BODY_MEMORY_BYTES = 512 * 1024**2


def _check_origin(origin: str) -> str:
    """Check that an origin is written as browsers send it. Otherwise it would never match."""
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+", origin):
        raise ValueError(
            "an origin must be * or SCHEME://HOST[:PORT], in lowercase and without a path or "
            "trailing slash"
        )
    return origin


def _reject_former_format(error_format: object) -> object:
    if error_format == "page":
        raise ValueError("page is now called flat")
    return error_format


def _check_absolute(path: str) -> str:
    """Check that a path is absolute. Ray chooses the working directory of ingress replicas."""
    if not Path(path).is_absolute():
        raise ValueError(
            "the path must be absolute, because Ray chooses the working directory of ingress "
            "replicas"
        )
    return path


class HttpConfig(Settings):
    """The settings under `http:`."""

    renamed: ClassVar[Mapping[str, str]] = {"unavailable_after_s": "replica_wait_timeout_s"}

    error_format: Annotated[
        ErrorFormat,
        BeforeValidator(_reject_former_format),
        Field(
            description=(
                "Format of error bodies. `flat`: one JSON object with the fields `error`, "
                "`error_type`, `message`, `type`, `param` and `code`. `openai`: OpenAI's format, "
                "with `message`, `type`, `param` and `code` in an object under the key `error`. "
                "`auto`: `openai` for requests from OpenAI's SDKs, `flat` for all other requests."
            )
        ),
    ] = "auto"
    api_keys_file: Annotated[
        Annotated[str, AfterValidator(_check_absolute)] | None,
        Field(
            description=(
                "Absolute path of the key file, which contains one API key per line, as `KEY` or "
                "`NAME KEY`. The file must exist on each machine that runs an ingress replica. "
                "Changes to the file take effect within about two seconds, without a restart. The "
                "environment variable `EMBEDDINGS_API_KEYS` can contain keys too. If neither the "
                "setting nor the variable is set, no key is required."
            )
        ),
    ] = None
    metrics_need_key: Annotated[
        bool,
        Field(description="Whether `/metrics` requires an API key, if API keys are configured."),
    ] = False
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...],
        Field(
            description=(
                "Web origins whose pages may call the server from a browser, such as "
                "`https://example.org`. `*` allows all origins."
            )
        ),
    ] = ()
    max_concurrent_requests: Annotated[
        PositiveInt | None,
        Field(
            description=(
                "Maximum number of embedding requests in progress in one ingress replica. Further "
                "requests are rejected with 429. `null` removes the limit."
            )
        ),
    ] = 2000
    max_client_batch_size: Annotated[
        PositiveInt,
        Field(
            description="Maximum number of inputs in a request. Requests with more inputs are rejected with 413."
        ),
    ] = 2048
    max_request_tokens: Annotated[
        PositiveInt,
        Field(
            description="Maximum number of tokens in a request. Requests with more tokens are rejected with 413."
        ),
    ] = 300_000
    max_body_bytes: Annotated[
        PositiveInt,
        Field(
            description=(
                "Maximum size of a request body, in bytes, both as sent and decompressed. Larger "
                "bodies are rejected with 413."
            )
        ),
    ] = 16 * 1024**2
    max_held_body_bytes: Annotated[PositiveInt | None, undocumented] = None
    body_timeout_s: Annotated[
        PositiveFloat,
        Field(
            description=(
                "Seconds that a request body may take to arrive. If it takes longer, the request "
                "fails with 408."
            )
        ),
    ] = 30.0
    request_timeout_s: Annotated[
        PositiveFloat,
        Field(
            description=(
                "Seconds that a request may take after its body has arrived. Longer requests fail "
                "with 504."
            )
        ),
    ] = 120.0
    replica_wait_timeout_s: Annotated[
        PositiveFloat,
        Field(
            description=(
                "Seconds that a request may wait for a model that has no ready replica. Then it fails "
                "with 503."
            )
        ),
    ] = 30.0
    retry_after_s: Annotated[
        int,
        Field(
            ge=1,
            le=60,
            description=(
                "`Retry-After` value, in seconds, of a 503 response. A 429 response also uses it "
                "until the throughput has been measured."
            ),
        ),
    ] = 1

    @property
    def body_memory_bytes(self) -> int:
        """Maximum total size, in bytes, of the request bodies that one ingress replica holds."""
        return self.max_held_body_bytes or max(_BODY_MEMORY_BYTES, self.max_body_bytes)

    @model_validator(mode="after")
    def _check_body_memory(self) -> Self:
        if self.body_memory_bytes < self.max_body_bytes:
            raise ValueError("max_held_body_bytes must be at least max_body_bytes")
        return self
