"""The command `embeddings-haproxy`: starts HAProxy with this server's limits and error responses.

Ray Serve starts this command in place of HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`). The command patches the config that
Ray Serve has written, then replaces itself with HAProxy. What the patch changes:

- HAProxy's own responses are JSON with a request id. HAProxy responds itself while no application is deployed, when an
  ingress replica has died, and to requests that are not valid.
- Heads may have 32 KiB in the target and 32 KiB in the headers, and 500 headers. HAProxy's defaults are 16 KiB and 101.
- A request is sent to another replica if the first one died before it sent any part of a response. This is safe because
  embedding is idempotent.
- The pages for operators are bound to localhost. Ray Serve binds them to all addresses.

HAProxy answers itself, in HTML and without a request id, what its parser rejects before there is a request: malformed
HTTP, more than 500 headers, and heads of more than 64 KiB.

A client that closes its sending side is treated as one that has left, as Ray Serve configures HAProxy to do (`option
abortonclose`), because most clients that do so have left, and their work should be dropped. It gets a 400.

The command ends with an error if the config lacks a line that it patches, as that of another version of Ray may. This
module does not import Ray. It depends only on the text of that config.
"""

import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from serve_app.api.error_responses import SANE_REQUEST_ID, error_reply
from serve_app.config.http import ErrorFormat
from serve_app.errors import (
    HeadersTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RequestTimeoutError,
    ServiceError,
    UnavailableError,
    UriTooLongError,
)
from serve_app.proxy.environment import haproxy_binary, proxy_error_format

# The size of the target, and of all headers together, that a request may have, in bytes.
_MAX_TARGET_BYTES = _MAX_HEADERS_BYTES = 32_768
_MAX_HEADERS = 500
# A buffer holds a head, with room for what Ray Serve and this patch add to it.
_BUFFER_BYTES = 2 * _MAX_HEADERS_BYTES
# Time limit, in seconds, for a request's headers and for the part of its body that HAProxy buffers.
_REQUEST_TIMEOUT_S = 30

_UNAVAILABLE = UnavailableError("No replica is available.", "model_unavailable", retry_after_s=1)
_NOT_FOUND = NotFoundError("Path not found.", "not_found")
_UNKNOWN_METHOD = MethodNotAllowedError("GET, HEAD, OPTIONS, POST")
_LONG_TARGET = UriTooLongError(
    f"The target of the request is longer than {_MAX_TARGET_BYTES} bytes.", "uri_too_long"
)
_LARGE_HEADERS = HeadersTooLargeError(
    f"The headers of the request are larger than {_MAX_HEADERS_BYTES} bytes.", "headers_too_large"
)
# Maps HAProxy's status to the error that replaces it.
_ERRORS: dict[int, ServiceError] = {
    400: InvalidRequestError(
        "The request is not valid, or the client closed its side of the connection.", "invalid_http"
    ),
    408: RequestTimeoutError("The request body did not arrive in time.", "request_timeout"),
    500: _UNAVAILABLE,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}
# The errors that rules in the frontend return, each with HAProxy's condition.
_RULES: tuple[tuple[ServiceError, str], ...] = (
    (_UNKNOWN_METHOD, "!{ method GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT }"),
    (_LONG_TARGET, f"{{ url,length gt {_MAX_TARGET_BYTES} }}"),
    (_LARGE_HEADERS, f"{{ req.hdrs,length gt {_MAX_HEADERS_BYTES} }}"),
)

# Lines of Ray Serve's config that the patch replaces or extends.
_DEFAULTS, _FRONTEND, _RETRY, _BUFFER = (
    "defaults",
    "frontend http_frontend",
    "retry-on",
    "tune.bufsize",
)
# Ray Serve's response to a path that no application serves.
_RAY_404 = "http-request return status 404 content-type text/plain"
# The config sections of the pages that are for operators only.
_OPERATOR_SECTIONS = ("frontend prometheus", "listen stats")
_MARKERS = (_DEFAULTS, _FRONTEND, _RETRY, _BUFFER, _RAY_404, *_OPERATOR_SECTIONS)
# The first line of a patched config.
_PATCHED = "# Patched by embeddings-haproxy"
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


class UnsupportedConfigError(Exception):
    """The config lacks a line that the patch depends on."""


def patch_config(config: str, folder: Path, *, inside: str = "127.0.0.1") -> str:
    """Patch the HAProxy config that Ray Serve has written, as this module's docstring says.

    The patched config refers to the files that `write_answers` writes.

    Args:
        config: The config that Ray Serve has written.
        folder: The folder that contains the error responses.
        inside: The address to which HAProxy's statistics and metrics pages are bound.

    Raises:
        UnsupportedConfigError: The config lacks a line that the patch depends on.
    """
    if config.startswith(_PATCHED):
        return config
    found: set[str] = set()
    patched = "\n".join([_PATCHED, *_patch_lines(config, folder, inside, found)]) + "\n"
    if missing := [marker for marker in _MARKERS if marker not in found]:
        raise UnsupportedConfigError(
            f"Ray {version('ray')} is not supported with HAProxy: its HAProxy config has no line "
            f"{' and no line '.join(map(repr, missing))}. Use Ray's default proxy (RAY_SERVE_ENABLE_HA_PROXY=0), or "
            "the version of Ray that this server requires."
        )
    return patched


def _patch_lines(config: str, folder: Path, inside: str, found: set[str]) -> Iterator[str]:
    section = ""
    has_application = re.search(r"^backend (?!default_backend$)", config, re.MULTILINE) is not None
    for line in config.splitlines():
        words = line.split()
        section = line if line[:1].strip() else section
        marker = _marker(line, section)
        found.add(marker)
        if words[:1] == ["errorfile"]:
            continue
        if marker in _OPERATOR_SECTIONS:
            yield f"    bind {inside}:{words[1].rpartition(':')[2]}"
        elif marker == _RAY_404:
            # If there is no application yet, the server is still starting, and the path may exist later.
            yield _return(_NOT_FOUND if has_application else _UNAVAILABLE, folder)
        elif marker == _RETRY:
            # HAProxy can only retry a request that it has buffered completely.
            yield "    option http-buffer-request"
            yield "    retry-on conn-failure empty-response"
        elif marker == _BUFFER:
            yield f"    tune.bufsize {max(int(words[1]), _BUFFER_BYTES)}"
            yield f"    tune.http.maxhdr {_MAX_HEADERS}"
        else:
            yield line
            yield from _additions(marker, folder)


def _additions(marker: str, folder: Path) -> Iterator[str]:
    """Yield the lines to add after a line of Ray Serve's config."""
    if marker == _DEFAULTS:
        yield from (f"    errorfile {status} {folder / f'{status}.http'}" for status in _ERRORS)
        yield f"    timeout http-request {_REQUEST_TIMEOUT_S}s"
    elif marker == _FRONTEND:
        yield _REQUEST_IDS.strip("\n")
        yield from (f"{_return(error, folder)} if {condition}" for error, condition in _RULES)


def _marker(line: str, section: str) -> str:
    """Return the entry of `_MARKERS` that a line is; empty if it is none."""
    words = line.split()
    if words[:1] == ["bind"] and section in _OPERATOR_SECTIONS:
        return section
    if line.strip().startswith(_RAY_404):
        return _RAY_404
    if words[:1] in ([_RETRY], [_BUFFER]):
        return words[0]
    return line if line in (_DEFAULTS, _FRONTEND) else ""


def _return(error: ServiceError, folder: Path) -> str:
    body = folder / f"{error.status}.json"
    rule = f"http-request return status {error.status} content-type application/json file {body}"
    if error.retry_after_s:
        rule += f" hdr retry-after {error.retry_after_s}"
    if isinstance(error, MethodNotAllowedError):
        rule += f' hdr allow "{error.allow}"'
    return f"    {rule}"


def write_answers(folder: Path, *, error_format: ErrorFormat = "flat") -> None:
    """Write the files that a patched config refers to. With `auto`, they have the flat format."""
    shape: ErrorFormat = "openai" if error_format == "openai" else "flat"
    for status, error in _ERRORS.items():
        (folder / f"{status}.http").write_bytes(_message(error, shape))
    for error in (_NOT_FOUND, _UNAVAILABLE, *(error for error, _ in _RULES)):
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
        try:
            patched = patch_config(config.read_text(), config.parent, inside=inside)
        except UnsupportedConfigError as error:
            sys.exit(str(error))
        config.write_text(patched)
    os.execv(binary, [binary, *arguments])  # noqa: S606  # deliberately without a shell


if __name__ == "__main__":
    main()
