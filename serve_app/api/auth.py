"""API keys: loads the valid keys and authenticates requests.

Keys come from a key file and from the environment variable `EMBEDDINGS_API_KEYS`. Each line contains one key, with an
optional name before the key. As requests arrive, the key file is checked for changes, so keys can be added and revoked
without a restart. Logs and metrics contain the names of keys, never the keys. Errors contain neither.
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
# Minimum seconds between two checks of the key file for changes.
_CHECK_INTERVAL_S = 1.0
# A key file that was changed less than this many seconds ago is not reloaded, because it may be half-written and lack
# some keys.
_MIN_AGE_S = 1.0

logger = logging.getLogger("ray.serve.embeddings")


class ApiKeys:
    """The API keys that are valid now. If neither a key file nor the variable is configured, every request is allowed.

    Args:
        file: path of the key file, or None if there is no key file.
        environment: the environment variables, which may contain `EMBEDDINGS_API_KEYS`.

    Raises:
        ValueError: the key file cannot be read, a line is neither `KEY` nor `NAME KEY`, or the variable is set but
            contains no key.
    """

    def __init__(self, file: str | None, environment: Mapping[str, str] = os.environ) -> None:
        value = environment.get(VARIABLE, "")
        self._from_environment = dict(_parse(value.replace(",", "\n")))
        if value and not self._from_environment:  # a set variable means that keys are wanted
            raise ValueError(f"{VARIABLE} is set but contains no key")
        self._file = Path(file) if file else None
        self._from_file: dict[bytes, str] = {}
        self._stamp: tuple[int, ...] = ()
        self._checked_at = time.monotonic()
        if self._file is not None:
            try:
                self._read(self._file, self._file.stat())
            except OSError as error:
                raise ValueError(f"api_keys_file cannot be read: {error.strerror}") from None

    @property
    def are_required(self) -> bool:
        """Whether a request must carry a key."""
        return self._file is not None or bool(self._from_environment)

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the name of the key in a request's headers, or "" if no key is required.

        Raises:
            UnauthorizedError: a key is required, and the headers contain no valid one.
        """
        if not self.are_required:
            return ""
        self._reload_if_changed()
        owner = ""
        valid = [*self._from_environment.items(), *self._from_file.items()]
        for key in _keys_in(headers):
            digest = _digest(key)
            # Compare with every key: stopping at a match would reveal through timing which key matched.
            for known, name in valid:
                if hmac.compare_digest(digest, known):
                    owner = name
        if not owner:
            raise UnauthorizedError(
                "A valid API key is required, as `Authorization: Bearer KEY`, `api-key` or `x-api-key`.",
                "invalid_api_key",
            )
        return owner

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._checked_at < _CHECK_INTERVAL_S:
            return
        self._checked_at = now
        try:
            status = self._file.stat()
            is_fresh = 0 <= time.time() - status.st_mtime < _MIN_AGE_S
            if not is_fresh:
                self._read(self._file, status)
        except (OSError, ValueError) as error:
            logger.warning(
                "api_keys_file: reload failed with %s; the previous keys stay valid",
                type(error).__name__,
            )

    def _read(self, file: Path, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise ValueError("api_keys_file is not a regular file")
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._from_file = dict(_parse(file.read_text(encoding="utf-8-sig")))
            self._stamp = stamp
            level = logging.INFO if self._from_file else logging.WARNING
            logger.log(level, "api_keys_file: loaded %d keys", len(self._from_file))


def _parse(text: str) -> Iterator[tuple[bytes, str]]:
    """Yield the digest and the name of each key. Lines that begin with # are comments."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # In `KEY #comment` the key would become the name, and names are logged.
        if len(words) > 2 or words[-1].startswith("#"):
            raise ValueError(f"API keys, line {number}: expected KEY or NAME KEY")
        yield _digest(words[-1].encode()), words[0] if len(words) > 1 else UNNAMED


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _keys_in(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name in (b"api-key", b"x-api-key"):
            yield value.strip()
        elif name == b"authorization":
            words = value.split(maxsplit=1)
            if len(words) > 1 and words[0].lower() == b"bearer":
                yield words[1].strip()
