"""What HAProxy answers by itself, in the contract's shape: while nothing is deployed, when an ingress replica is gone.

Stands where Ray Serve looks for HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`, the command `embeddings-haproxy`): completes
the config that Ray Serve has written, and becomes HAProxy. Knows nothing of Ray but the text of that config.
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

_UNAVAILABLE = UnavailableError("No replica answers.", "model_unavailable", retry_after_s=1)
# By the status that HAProxy would have sent; ours is the error's. Its 400 for what is no HTTP cannot be replaced.
_ERRORS: dict[int, ServiceError] = {
    408: RequestTimeoutError("The body was not complete in time.", "request_timeout"),
    500: _UNAVAILABLE,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}
_NOWHERE = NotFoundError("There is no such path here.", "not_found")
# Seconds that a request's headers may take, and its body as far as it is held here.
_REQUEST_S = 30

# Ray Serve's answer where no application has the path.
_RAYS_404 = "http-request return status 404 content-type text/plain"
# What is for whoever operates the server, and for nobody else.
_INSIDE = ("frontend prometheus", "listen stats")
_INSIDE_VARIABLE = "EMBEDDINGS_HAPROXY_STATS_HOST"

# HAProxy's own answers get an id as ours do: the client's if it is a sane one.
_REQUEST_IDS = f"""
    unique-id-format %[uuid]
    http-request set-var(txn.request_id) req.hdr(x-request-id) if {{ req.hdr(x-request-id) -m reg ^{SANE_REQUEST_ID}$ }}
    http-request set-var(txn.request_id) unique-id if !{{ var(txn.request_id) -m found }}
    acl was_read var(txn.request_id) -m found
    acl has_id res.hdr(x-request-id) -m found
    http-after-response set-header x-request-id %[var(txn.request_id)] if was_read !has_id
"""


def patch_config(config: str, folder: Path, *, inside: str = "127.0.0.1") -> str:
    """Return Ray Serve's config of HAProxy with answers of ours, whose files `write_answers` writes.

    A request whose replica died before it said anything is sent again, to another: embedding can be repeated.

    Args:
        config: as Ray Serve has written it.
        folder: where the answers lie.
        inside: the address of HAProxy's own pages, its statistics and metrics, which Ray Serve opens to everyone.
    """
    return "\n".join(_completed(config, folder, inside)) + "\n"


def _completed(config: str, folder: Path, inside: str) -> Iterator[str]:
    section = ""
    has_application = re.search(r"^backend (?!default_backend$)", config, re.MULTILINE) is not None
    for line in config.splitlines():
        words = line.split()
        section = line if line[:1].strip() else section
        if words[:1] == ["errorfile"]:
            continue
        if words[:1] == ["bind"] and section in _INSIDE:
            yield f"    bind {inside}:{words[1].rpartition(':')[2]}"
        elif line.strip().startswith(_RAYS_404):
            # Before the first application there is a server that is starting, and paths will come.
            yield _return(_NOWHERE if has_application else _UNAVAILABLE, folder)
        elif words[:1] == ["retry-on"]:
            # Only a request that is held back until its body is here can be sent again: up to 16 KiB, a buffer's size.
            yield "    option http-buffer-request"
            yield "    retry-on conn-failure empty-response"
        else:
            yield line
        if line == "defaults":
            yield from (f"    errorfile {status} {folder / f'{status}.http'}" for status in _ERRORS)
            yield f"    timeout http-request {_REQUEST_S}s"
        if line == "frontend http_frontend":
            yield _REQUEST_IDS.strip("\n")


def _return(error: ServiceError, folder: Path) -> str:
    wait = f" hdr retry-after {error.retry_after_s}" if error.retry_after_s else ""
    body = folder / f"{error.status}.json"
    return f"    http-request return status {error.status} content-type application/json file {body}{wait}"


def write_answers(folder: Path, *, error_format: ErrorFormat = "flat") -> None:
    """Write the files that a completed config names; with `auto` too the page's shape goes to all."""
    shape: ErrorFormat = "openai" if error_format == "openai" else "flat"
    for status, error in _ERRORS.items():
        (folder / f"{status}.http").write_bytes(_message(error, shape))
    for error in (_NOWHERE, _UNAVAILABLE):
        _, _, body = error_reply(error, error_format=shape, request_headers=())
        (folder / f"{error.status}.json").write_bytes(body)


def _message(error: ServiceError, error_format: ErrorFormat) -> bytes:
    status, headers, body = error_reply(error, error_format=error_format, request_headers=())
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, error.error.encode(), head, body)


def main() -> None:
    """Complete the config named by `-f` and become HAProxy, with the same arguments."""
    arguments = sys.argv[1:]
    binary = haproxy_binary({})
    if binary is None:
        sys.exit("there is no HAProxy that runs on this machine")
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        write_answers(config.parent, error_format=proxy_error_format(os.environ))
        inside = os.environ.get(_INSIDE_VARIABLE, "127.0.0.1")
        config.write_text(patch_config(config.read_text(), config.parent, inside=inside))
    os.execv(binary, [binary, *arguments])  # noqa: S606  # no shell, on purpose


if __name__ == "__main__":
    main()
