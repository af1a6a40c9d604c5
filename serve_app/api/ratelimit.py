"""The `x-ratelimit-*` headers: how much the queue takes, has room for, and when it will be empty."""

from collections.abc import Iterable

from serve_app.dispatch.admission import Admission


def rate_limit_headers(
    requests: Admission, tokens: Admission | None
) -> Iterable[tuple[bytes, bytes]]:
    """Tell of the live state, in OpenAI's words: what is taken at once, what there is room for, when all is done.

    Args:
        requests: the ingress's.
        tokens: the model's; None for no model.
    """
    for unit, backlog in ((b"requests", requests), (b"tokens", tokens)):
        if backlog is not None and backlog.limit is not None:
            yield b"x-ratelimit-limit-" + unit, str(backlog.limit).encode()
            yield b"x-ratelimit-remaining-" + unit, str(backlog.remaining).encode()
            yield b"x-ratelimit-reset-" + unit, f"{round(backlog.wait_s * 1000)}ms".encode()
