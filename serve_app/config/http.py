"""The settings of the HTTP side, under `http:`: limits, keys, origins and the shape of errors.

Knows nothing of Ray.
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
# Memory for request bodies in one ingress replica, unless a single body may be larger.
_BODY_MEMORY_BYTES = 512 * 1024**2


def _origin(origin: str) -> str:
    """Check that an origin is written as browsers send it: any other would match nothing, and say nothing."""
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+", origin):
        raise ValueError(
            "an origin is SCHEME://HOST or SCHEME://HOST:PORT in small letters, with nothing after it; or *"
        )
    return origin


def _not_page(shape: object) -> object:
    """Refuse the former name of a shape with its new one."""
    if shape == "page":
        raise ValueError("page is now called flat")
    return shape


def _absolute(path: str) -> str:
    """Check that a path does not depend on where Ray starts a process."""
    if not Path(path).is_absolute():
        raise ValueError(
            "give an absolute path, as this is read where Ray starts an ingress replica"
        )
    return path


class HttpConfig(Settings):
    """The HTTP side: limits and the shape of errors."""

    renamed: ClassVar[Mapping[str, str]] = {"unavailable_after_s": "replica_wait_timeout_s"}

    error_format: Annotated[
        ErrorFormat,
        BeforeValidator(_not_page),
        Field(
            description="Shape of errors: `auto` sends OpenAI's envelope to its SDKs and the page's to all others."
        ),
    ] = "auto"
    api_keys_file: Annotated[
        Annotated[str, AfterValidator(_absolute)] | None,
        Field(
            description=(
                "The absolute path of a file of API keys, a line each: `KEY` or `NAME KEY`; looked at again every "
                "second, and needed on each machine with an ingress replica. More, or all, may be in the environment "
                "variable `EMBEDDINGS_API_KEYS`. Without either nobody needs a key."
            )
        ),
    ] = None
    metrics_need_key: Annotated[
        bool, Field(description="Whether `/metrics` needs a key, where there are keys.")
    ] = False
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...],
        Field(
            description="Web origins whose pages may call, as `https://example.org`; `*` is all of them."
        ),
    ] = ()
    max_client_batch_size: Annotated[
        PositiveInt, Field(description="Most inputs in a request; beyond it 413.")
    ] = 2048
    max_request_tokens: Annotated[
        PositiveInt, Field(description="Most tokens in a request; beyond it 413.")
    ] = 300_000
    max_body_bytes: Annotated[
        PositiveInt, Field(description="Most bytes in a body; beyond it 413.")
    ] = 16 * 1024**2
    max_held_body_bytes: Annotated[PositiveInt | None, undocumented] = None
    body_timeout_s: Annotated[
        PositiveFloat, Field(description="Seconds a body may take to arrive; then 408.")
    ] = 30.0
    request_timeout_s: Annotated[
        PositiveFloat,
        Field(description="Seconds a request may take once its body is here; then 504."),
    ] = 120.0
    replica_wait_timeout_s: Annotated[
        PositiveFloat,
        Field(description="Seconds a request waits for a model without any replica; then 503."),
    ] = 30.0
    retry_after_s: Annotated[
        int,
        Field(
            ge=1,
            le=60,
            description="`Retry-After` of a 503, and of a 429 before anything was done from which a wait follows.",
        ),
    ] = 1

    @property
    def body_memory_bytes(self) -> int:
        """Most bytes of request bodies in one ingress replica, of all requests that arrive or are in progress."""
        return self.max_held_body_bytes or max(_BODY_MEMORY_BYTES, self.max_body_bytes)

    @model_validator(mode="after")
    def _each_body_fits(self) -> Self:
        if self.body_memory_bytes < self.max_body_bytes:
            raise ValueError("max_held_body_bytes: less than max_body_bytes")
        return self
