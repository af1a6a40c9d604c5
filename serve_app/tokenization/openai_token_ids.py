"""Decodes token ids of OpenAI's `cl100k_base` encoding, which OpenAI clients send instead of text.

tiktoken downloads the encoding file once, or finds it in `TIKTOKEN_CACHE_DIR`. The file is loaded in the background, so
a server without the file still starts and serves text. This module does not depend on the served models.
"""

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from serve_app.errors import InvalidRequestError, PayloadTooLargeError

NAME = "cl100k_base"
# Larger ids are special tokens. They are accepted, but an encoded text does not contain them.
LAST_ORDINARY_ID = 100_255
# The seconds that a request waits for the encoding file. Without a network, tiktoken tries to download the file during
# the server's first seconds.
_LOAD_TIMEOUT_S = 10.0
# Requests with at least this many ids are decoded in a thread, because that takes several milliseconds.
_INLINE_IDS = 20_000
# The number of ids that are decoded between two checks of the text's length.
_PART_IDS = 10_000

logger = logging.getLogger("ray.serve.embeddings")


def _load() -> Any:
    if importlib.util.find_spec("tiktoken") is None:
        raise ImportError("tiktoken is not installed")
    import tiktoken

    return tiktoken.get_encoding(NAME)


class Cl100k:
    """Decode `cl100k_base` token ids. The encoding is loaded in a thread that the constructor starts.

    Args:
        load: returns tiktoken's encoding, or raises an exception.
    """

    def __init__(self, load: Callable[[], Any] = _load) -> None:
        self._encoding: Future[Any] = Future()
        threading.Thread(target=self._run, args=(load,), name="cl100k", daemon=True).start()

    def _run(self, load: Callable[[], Any]) -> None:
        try:
            self._encoding.set_result(load())
        except Exception as error:
            kind = type(error).__name__
            logger.warning(
                "cannot load the %s encoding: %s; token ids from OpenAI clients are rejected, text is accepted",
                NAME,
                kind,
            )
            self._encoding.set_exception(error)

    async def decode(self, inputs: Sequence[Sequence[int]], *, max_bytes: int) -> list[str]:
        """Return the text of each input.

        Args:
            inputs: the token ids of each input.
            max_bytes: the maximum total size of the texts in UTF-8, in bytes. A single id can stand for 128 bytes.

        Raises:
            PayloadTooLargeError: the texts exceed `max_bytes`.
            InvalidRequestError: an id is not in the encoding, or the encoding is not available.
        """
        loading = asyncio.wrap_future(self._encoding)
        # asyncio would log an exception that nobody retrieves because the request timed out.
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            encoding = await asyncio.wait_for(asyncio.shield(loading), _LOAD_TIMEOUT_S)
        except Exception:
            raise InvalidRequestError(
                f"This server cannot decode token ids because the {NAME} encoding file is missing. Send "
                "strings (LangChain: check_embedding_ctx_length=False). Operators: install tiktoken, and set "
                "TIKTOKEN_CACHE_DIR if the server has no network access.",
                "token_ids_not_accepted",
                "input",
            ) from None
        if sum(map(len, inputs)) < _INLINE_IDS:
            return _texts(encoding, inputs, max_bytes)
        return await asyncio.to_thread(_texts, encoding, inputs, max_bytes)


def _texts(encoding: Any, inputs: Sequence[Sequence[int]], max_bytes: int) -> list[str]:
    texts = []
    remaining_bytes = max_bytes
    for index, ids in enumerate(inputs):
        # Decode in parts, so that a text that is too long is rejected before the whole text is in memory.
        parts = []
        for start in range(0, len(ids), _PART_IDS):
            part = _bytes(encoding, ids[start : start + _PART_IDS], index)
            remaining_bytes -= len(part)
            if remaining_bytes < 0:
                message = (
                    f"The token ids decode to more than {max_bytes} bytes of text. Split the list."
                )
                raise PayloadTooLargeError(message, "payload_too_large", "input")
            parts.append(part)
        # Clients that split long texts by token ids may split a character.
        texts.append(b"".join(parts).decode("utf-8", errors="replace"))
    return texts


def _bytes(encoding: Any, ids: Sequence[int], index: int) -> bytes:
    try:
        return bytes(encoding.decode_bytes(ids))
    except (KeyError, OverflowError):
        raise InvalidRequestError(
            f"{{item}} contains a token id that is not in {NAME}.",
            "invalid_token_id",
            "input",
            index=index,
        ) from None
