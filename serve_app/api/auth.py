"""API keys: which there are, and whose a request carries.

Read from a file and from the environment, one a line, with an optional name before it. The file is looked at again now
and then, so that keys come and go without a restart. No key is ever in a log, a metric or an error; names are.
"""

import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from serve_app.errors import UnauthorizedError

VARIABLE = "EMBEDDINGS_API_KEYS"
UNNAMED = "unnamed"
# Seconds between two looks at the file.
_LOOK_EVERY_S = 1.0
# Seconds that a file must have stayed as it is: one that is being written would lack some keys for a moment.
_SETTLED_S = 1.0

logger = logging.getLogger("ray.serve.embeddings")


class ApiKeys:
    """The keys that are valid now; none at all where none were configured, and then everyone may come in.

    Args:
        file: where keys are; None for no file.
        environment: where `EMBEDDINGS_API_KEYS` may be.

    Raises:
        ValueError: the file cannot be read, a line is neither a key nor a name and a key, or the variable is set and
            holds no key.
    """

    def __init__(self, file: str | None, environment: Mapping[str, str] = os.environ) -> None:
        given = environment.get(VARIABLE, "")
        self._given = dict(_parse(given.replace(",", "\n")))
        if given and not self._given:  # whoever sets it wants keys to be asked for
            raise ValueError(f"{VARIABLE} is set and holds no key")
        self._file = Path(file) if file else None
        self._in_file: dict[bytes, str] = {}
        self._stamp: tuple[int, ...] = ()
        self._looked_at = time.monotonic()
        if self._file is not None:
            try:
                self._read(self._file, self._file.stat())
            except OSError as error:
                raise ValueError(f"api_keys_file cannot be read: {error.strerror}") from None

    @property
    def are_required(self) -> bool:
        """Whether a request must carry a key."""
        return self._file is not None or bool(self._given)

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the name of the key in a request's headers, or "" where none is needed.

        Raises:
            UnauthorizedError: one is needed, and none of them is valid.
        """
        if not self.are_required:
            return ""
        self._look_again()
        found = ""
        valid = [*self._given.items(), *self._in_file.items()]
        for sent in _sent(headers):
            digest = _digest(sent)
            for known, name in valid:  # all of them, so that the time tells nothing
                found = name if hmac.compare_digest(digest, known) else found
        if not found:
            raise UnauthorizedError(
                "A valid API key is needed, as `Authorization: Bearer KEY`, `api-key` or `x-api-key`.",
                "invalid_api_key",
            )
        return found

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            status = self._file.stat()
            if not 0 <= time.time() - status.st_mtime < _SETTLED_S:
                self._read(self._file, status)
        except (OSError, ValueError) as error:
            logger.warning("api_keys_file: %s; the keys stay as they were", type(error).__name__)

    def _read(self, file: Path, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise ValueError("api_keys_file is no file")
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._in_file = dict(_parse(file.read_text(encoding="utf-8-sig")))
            self._stamp = stamp
            level = logging.INFO if self._in_file else logging.WARNING
            logger.log(level, "api_keys_file: %d keys", len(self._in_file))


def _parse(text: str) -> Iterator[tuple[bytes, str]]:
    """Give the digest and the name of each key; comments begin with #."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # More than a name and a key, or a key with a comment behind it, which would make a name of the key.
        if len(words) > 2 or words[-1].startswith("#"):
            raise ValueError(f"line {number} of the API keys is neither KEY nor NAME KEY")
        yield _digest(words[-1].encode()), words[0] if len(words) > 1 else UNNAMED


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _sent(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name in (b"api-key", b"x-api-key"):
            yield value.strip()
        elif name == b"authorization":
            words = value.split(maxsplit=1)
            if len(words) > 1 and words[0].lower() == b"bearer":
                yield words[1].strip()
