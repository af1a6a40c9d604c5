"""The command `embeddings-haproxy`: starts HAProxy with this server's limits and error responses.

Ray Serve starts this command in place of HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`). The command patches the config that
Ray Serve has written, then replaces itself with HAProxy. What the patches change:

- HAProxy's own responses are JSON with a request id. HAProxy responds itself while no application is deployed, when an
  ingress replica has died, and when a body does not arrive.
- A request is sent to another replica if the first one died before it sent any part of a response. This is safe for
  embedding, which is idempotent. It applies to other applications in the cluster, too.
- Requests may have more than 101 headers, so that the server's own limit applies (`serve_app.api.middleware`). The size
  of a head is limited by `RAY_SERVE_HAPROXY_TUNE_BUFSIZE`.
- The ingress replicas' HTTP parser rejects unknown methods, and stops at an offer to upgrade to HTTP/2. So an unknown
  method becomes PATCH, which no operation has, and the offer is dropped. Offers to upgrade to WebSocket are kept for
  other applications.
- A client that reads nothing of its response for a minute is disconnected.
- The pages for operators are bound to localhost. Ray Serve binds them to all addresses.

HAProxy answers itself, in HTML and without a request id, what its parser rejects before there is a request; docs/api.md
lists the cases.

A client that closes its sending side is treated as one that has left, as Ray Serve configures HAProxy to do (`option
abortonclose`), because most clients that do so have left, and their work should be dropped. It gets a 400.

The command ends with an error if a patch does not fit the config, which may happen with another version of Ray. This
module does not import Ray. It depends only on the text of that config.
"""

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

from serve_app.api.error_responses import SANE_REQUEST_ID, raw_error_reply
from serve_app.config.http import ErrorFormat
from serve_app.errors import (
    InvalidRequestError,
    NotFoundError,
    RequestTimeoutError,
    ServiceError,
    UnavailableError,
)
from serve_app.proxy.environment import haproxy_binary, proxy_error_format

# The number of headers that HAProxy can hold.
_MAX_HEADERS = 2000
# Time limit, in seconds, for a request's head and for the part of its body that HAProxy buffers.
_REQUEST_TIMEOUT_S = 30
# Time, in seconds, after which a client that reads nothing of its response is disconnected.
_READ_TIMEOUT_S = 60

_UNAVAILABLE = UnavailableError("No replica is available.", "model_unavailable", retry_after_s=1)
_NOT_FOUND = NotFoundError("Path not found.", "not_found")
# Maps HAProxy's status to the error that replaces it.
_ERRORS: dict[int, ServiceError] = {
    400: InvalidRequestError(
        "The request is not valid, or the client closed its side of the connection.", "invalid_http"
    ),
    404: _NOT_FOUND,
    408: RequestTimeoutError("The request body did not arrive in time.", "request_timeout"),
    500: _UNAVAILABLE,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}

# The first line of a patched config.
_PATCHED = "# Patched by embeddings-haproxy"
_STATS_HOST_VARIABLE = "EMBEDDINGS_HAPROXY_STATS_HOST"

# What HAProxy does with each request. Its own responses carry a request id: the client's id if it is valid, and a new
# id otherwise.
_REQUEST_RULES = f"""
    unique-id-format %[uuid]
    acl is_sane_id req.fhdr(x-request-id) -m reg ^{SANE_REQUEST_ID}$
    http-request set-var(txn.request_id) req.fhdr(x-request-id) if is_sane_id
    http-request set-var(txn.request_id) unique-id if !is_sane_id
    acl was_read var(txn.request_id) -m found
    acl has_id res.hdr(x-request-id) -m found
    http-after-response set-header x-request-id %[var(txn.request_id)] if was_read !has_id
    http-request set-method PATCH if !{{ method GET HEAD POST PUT PATCH DELETE OPTIONS TRACE }}
    http-request del-header upgrade unless {{ req.hdr(upgrade) -i websocket }} {{ method GET }}
"""


class UnsupportedConfigError(Exception):
    """A patch does not fit the config."""


def patch_config(config: str, folder: Path, *, stats_host: str = "127.0.0.1") -> str:
    """Patch the HAProxy config that Ray Serve has written, as this module's docstring says.

    Args:
        config: the config that Ray Serve has written.
        folder: the folder with the files that `write_answers` writes. The patched config refers to them.
        stats_host: the address to which HAProxy's statistics and metrics pages are bound.

    Raises:
        UnsupportedConfigError: a patch does not fit the config.
    """
    if config.startswith(_PATCHED):
        return config
    for pattern, replacement in _patches(config, folder, stats_host).items():
        config, matches = re.subn(pattern, replacement, config, flags=re.MULTILINE)
        if matches != 1:
            raise UnsupportedConfigError(
                f"Ray {version('ray')} is not supported with HAProxy: its HAProxy config has {matches} matches of "
                f"'{pattern}' instead of one. Use Ray's default proxy (RAY_SERVE_ENABLE_HA_PROXY=0), or the version of "
                "Ray that this server requires."
            )
    return f"{_PATCHED}\n{config}"


def _patches(config: str, folder: Path, stats_host: str) -> dict[str, str]:
    """Return the replacement of each pattern, which has to match once."""
    errors = "\n".join(f"    errorfile {status} {folder / f'{status}.http'}" for status in _ERRORS)
    # If there is no application yet, the server is still starting, and the path may exist later.
    unknown_path = 404 if re.search(r"^backend (?!default_backend$)", config, re.MULTILINE) else 503
    return {
        r"^    tune\.bufsize \d+$": rf"\g<0>\n    tune.http.maxhdr {_MAX_HEADERS}",
        # HAProxy can only retry a request that it has buffered completely.
        r"^    retry-on .*$": (
            "    option http-buffer-request\n    retry-on conn-failure empty-response\n"
            f"    timeout http-request {_REQUEST_TIMEOUT_S}s"
        ),
        r"^    errorfile .*(\n    errorfile .*)*$": errors,
        r"^frontend http_frontend\n    bind \S+$": (
            rf"\g<0> tcp-ut {_READ_TIMEOUT_S}s{_REQUEST_RULES.rstrip()}"
        ),
        r"^    http-request return status 404 content-type text/plain .*$": (
            f"    http-request return status {unknown_path} default-errorfiles"
        ),
        r"(?<=^frontend prometheus\n)    bind .*(?=:\d+$)": f"    bind {stats_host}",
        r"(?<=^listen stats\n)  bind .*(?=:\d+$)": f"  bind {stats_host}",
    }


def write_answers(folder: Path, *, error_format: ErrorFormat = "flat") -> None:
    """Write the files that a patched config refers to. With `auto`, they have the flat format."""
    shape: ErrorFormat = "openai" if error_format == "openai" else "flat"
    for status, error in _ERRORS.items():
        (folder / f"{status}.http").write_bytes(raw_error_reply(error, error_format=shape))


def main() -> None:
    """Patch the config that `-f` names, then exec HAProxy with the same arguments."""
    arguments = sys.argv[1:]
    binary = haproxy_binary({})
    if binary is None:
        sys.exit("no HAProxy binary runs on this machine")
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        write_answers(config.parent, error_format=proxy_error_format(os.environ))
        stats_host = os.environ.get(_STATS_HOST_VARIABLE, "127.0.0.1")
        try:
            patched = patch_config(config.read_text(), config.parent, stats_host=stats_host)
        except UnsupportedConfigError as error:
            sys.exit(str(error))
        config.write_text(patched)
    os.execv(binary, [binary, *arguments])  # noqa: S606  # deliberately without a shell


if __name__ == "__main__":
    main()
