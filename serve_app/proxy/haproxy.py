"""The command `embeddings-haproxy`: starts HAProxy with this server's error responses.

HAProxy responds itself while no application is deployed and when an ingress replica has died. Ray
Serve starts this command in place of HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`). The command patches
the config that Ray Serve has written, then replaces itself with HAProxy. This module does not import
Ray. It depends only on the text of that config.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from serve_app.api.error_responses import SANE_REQUEST_ID, error_reply
from serve_app.config.http import ErrorFormat
from serve_app.errors import NotFoundError, RequestTimeoutError, ServiceError, UnavailableError
from serve_app.proxy.environment import haproxy_binary, proxy_error_format

_UNAVAILABLE = UnavailableError("No replica is available.", "model_unavailable", retry_after_s=1)
# Maps HAProxy's status to the error that replaces it. HAProxy's 400 for malformed HTTP cannot be
# replaced.
_ERRORS: dict[int, ServiceError] = {
    408: RequestTimeoutError("The request body did not arrive in time.", "request_timeout"),
    500: _UNAVAILABLE,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}
_NOT_FOUND = NotFoundError("Path not found.", "not_found")
# Time limit, in seconds, for a request's headers and for the part of its body that HAProxy buffers.
_REQUEST_TIMEOUT_S = 30

# Ray Serve's response to a path that no application serves.
_RAY_404 = "http-request return status 404 content-type text/plain"
# The config sections of the pages that are for operators only.
_OPERATOR_SECTIONS = ("frontend prometheus", "listen stats")
_STATS_HOST_VARIABLE = "EMBEDDINGS_HAPROXY_STATS_HOST"

# Adds a request ID to HAProxy's own responses: the client's ID if it is valid, and a new ID otherwise.
_REQUEST_IDS = f"""
    unique-id-format %[uuid]
    http-request set-var(txn.request_id) req.hdr(x-request-id) if {{ req.hdr(x-request-id) -m reg ^{SANE_REQUEST_ID}$ }}
    http-request set-var(txn.request_id) unique-id if !{{ var(txn.request_id) -m found }}
    acl was_read var(txn.request_id) -m found
    acl has_id res.hdr(x-request-id) -m found
    http-after-response set-header x-request-id %[var(txn.request_id)] if was_read !has_id
"""


def patch_config(config: str, folder: Path, *, inside: str = "127.0.0.1") -> str:
    """Add this server's error responses to the HAProxy config that Ray Serve has written.

    The patched config refers to the files that `write_answers` writes. It also makes HAProxy retry a
    request on another replica if the first replica died before it sent any part of a response. This
    is safe because embedding is idempotent.

    Args:
        config: The config that Ray Serve has written.
        folder: The folder that contains the error responses.
        inside: The address to which HAProxy's statistics and metrics pages are bound. Ray Serve's
            config binds them to all addresses.
    """
    return "\n".join(_patch_lines(config, folder, inside)) + "\n"


def _patch_lines(config: str, folder: Path, inside: str) -> Iterator[str]:
    section = ""
    has_application = re.search(r"^backend (?!default_backend$)", config, re.MULTILINE) is not None
    for line in config.splitlines():
        words = line.split()
        section = line if line[:1].strip() else section
        if words[:1] == ["errorfile"]:
            continue
        if words[:1] == ["bind"] and section in _OPERATOR_SECTIONS:
            yield f"    bind {inside}:{words[1].rpartition(':')[2]}"
        elif line.strip().startswith(_RAY_404):
            # If there is no application yet, the server is still starting, and the path may exist
            # later.
            yield _return(_NOT_FOUND if has_application else _UNAVAILABLE, folder)
        elif words[:1] == ["retry-on"]:
            # HAProxy can only retry a request that it has buffered completely. A buffer holds 16 KiB.
            yield "    option http-buffer-request"
            yield "    retry-on conn-failure empty-response"
        else:
            yield line
        if line == "defaults":
            yield from (f"    errorfile {status} {folder / f'{status}.http'}" for status in _ERRORS)
            yield f"    timeout http-request {_REQUEST_TIMEOUT_S}s"
        if line == "frontend http_frontend":
            yield _REQUEST_IDS.strip("\n")


def _return(error: ServiceError, folder: Path) -> str:
    body = folder / f"{error.status}.json"
    rule = f"http-request return status {error.status} content-type application/json file {body}"
    if error.retry_after_s:
        rule += f" hdr retry-after {error.retry_after_s}"
    return f"    {rule}"


def write_answers(folder: Path, *, error_format: ErrorFormat = "flat") -> None:
    """Write the files that a patched config refers to. With `auto`, they have the flat format."""
    shape: ErrorFormat = "openai" if error_format == "openai" else "flat"
    for status, error in _ERRORS.items():
        (folder / f"{status}.http").write_bytes(_message(error, shape))
    for error in (_NOT_FOUND, _UNAVAILABLE):
        _, _, body = error_reply(error, error_format=shape, request_headers=())
        (folder / f"{error.status}.json").write_bytes(body)


def _message(error: ServiceError, error_format: ErrorFormat) -> bytes:
    status, headers, body = error_reply(error, error_format=error_format, request_headers=())
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, error.error.encode(), head, body)


def main() -> None:
    """Patch the config that `-f` names, then exec HAProxy with the same arguments."""
    arguments = sys.argv[1:]
    binary = haproxy_binary({})
    if binary is None:
        sys.exit("no HAProxy binary runs on this machine")
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        write_answers(config.parent, error_format=proxy_error_format(os.environ))
        inside = os.environ.get(_STATS_HOST_VARIABLE, "127.0.0.1")
        config.write_text(patch_config(config.read_text(), config.parent, inside=inside))
    os.execv(binary, [binary, *arguments])  # noqa: S606  # deliberately without a shell


if __name__ == "__main__":
    main()
