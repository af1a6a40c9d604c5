"""The `x-ratelimit-*` headers: limits on pending requests and tokens, free capacity, time until all are finished."""

from collections.abc import Iterable

from serve_app.dispatch.admission import Admission


def rate_limit_headers(
    requests: Admission, tokens: Admission | None
) -> Iterable[tuple[bytes, bytes]]:
    """Yield OpenAI's rate-limit headers for the current state.

    Pending requests and tokens are those that were accepted and are not finished. No headers are yielded for an
    `Admission` without a limit.

    Args:
        requests: the pending requests of this ingress replica.
        tokens: the model's pending tokens; None if the request's model is not known yet.
    """
    for unit, admission in ((b"requests", requests), (b"tokens", tokens)):
        if admission is not None and admission.limit is not None:
            yield b"x-ratelimit-limit-" + unit, str(admission.limit).encode()
            yield b"x-ratelimit-remaining-" + unit, str(admission.remaining).encode()
            yield b"x-ratelimit-reset-" + unit, f"{round(admission.wait_s * 1000)}ms".encode()
