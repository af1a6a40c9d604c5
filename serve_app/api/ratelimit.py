"""The `x-ratelimit-*` headers: the queue's limit, its free capacity, and the time until it is empty."""

from collections.abc import Iterable

from serve_app.dispatch.admission import Admission


def rate_limit_headers(
    requests: Admission, tokens: Admission | None
) -> Iterable[tuple[bytes, bytes]]:
    """Yield OpenAI's rate-limit headers, from the state at this moment.

    An `Admission` without a limit yields no headers.

    Args:
        requests: the pending requests of this ingress replica.
        tokens: the pending tokens of the model; None if the request has no model yet.
    """
    for unit, admission in ((b"requests", requests), (b"tokens", tokens)):
        if admission is not None and admission.limit is not None:
            yield b"x-ratelimit-limit-" + unit, str(admission.limit).encode()
            yield b"x-ratelimit-remaining-" + unit, str(admission.remaining).encode()
            yield b"x-ratelimit-reset-" + unit, f"{round(admission.wait_s * 1000)}ms".encode()
