"""Token ids of OpenAI's encoding `cl100k_base`, which its clients send for texts, back to the texts.

tiktoken fetches the encoding's file once, or finds it in `TIKTOKEN_CACHE_DIR`. That is done in the background: a server
without it starts and serves texts. Knows nothing of the served models.
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
# What lies beyond are a few special tokens, which are taken but stand for no text of anybody.
LAST_ORDINARY_ID = 100_255
# Seconds that a request waits for the file; the first seconds of a server without network are spent on trying.
_PATIENCE_S = 10.0
# More ids than this are decoded in a thread: it takes some milliseconds.
_INLINE_IDS = 20_000
# So many ids are decoded before the length of their text is looked at.
_PART_IDS = 10_000

logger = logging.getLogger("ray.serve.embeddings")


def _load() -> Any:
    if importlib.util.find_spec("tiktoken") is None:
        raise ImportError("tiktoken is not installed")
    import tiktoken

    return tiktoken.get_encoding(NAME)


class Cl100k:
    """The encoding, once it is there; loading begins at once.

    Args:
        load: returns tiktoken's encoding, or raises.
    """

    def __init__(self, load: Callable[[], Any] = _load) -> None:
        self._encoding: Future[Any] = Future()
        threading.Thread(target=self._run, args=(load,), name="cl100k", daemon=True).start()

    def _run(self, load: Callable[[], Any]) -> None:
        try:
            self._encoding.set_result(load())
        except Exception as error:
            kind = type(error).__name__
            logger.warning("token ids of %s cannot be read: %s; texts can", NAME, kind)
            self._encoding.set_exception(error)

    async def decode(self, inputs: Sequence[Sequence[int]], *, max_bytes: int) -> list[str]:
        """Return the text of each input.

        Args:
            inputs: the ids of each.
            max_bytes: most bytes of UTF-8 that all texts may have; an id can stand for 128 of them.

        Raises:
            PayloadTooLargeError: the texts are longer.
            InvalidRequestError: the encoding has no such id, or is not to be had here.
        """
        try:
            encoding = await asyncio.wait_for(
                asyncio.shield(asyncio.wrap_future(self._encoding)), _PATIENCE_S
            )
        except Exception:
            raise InvalidRequestError(
                f"Token ids cannot be read here, as the file of {NAME} is missing. Send strings; LangChain: "
                "check_embedding_ctx_length=False. For the operator: install tiktoken, and set TIKTOKEN_CACHE_DIR "
                "where there is no network.",
                "token_ids_not_accepted",
                "input",
            ) from None
        if sum(map(len, inputs)) < _INLINE_IDS:
            return _texts(encoding, inputs, max_bytes)
        return await asyncio.to_thread(_texts, encoding, inputs, max_bytes)


def _texts(encoding: Any, inputs: Sequence[Sequence[int]], max_bytes: int) -> list[str]:
    texts = []
    left = max_bytes
    for index, ids in enumerate(inputs):
        # In parts, so that what is too long is noticed before it is there.
        parts = []
        for start in range(0, len(ids), _PART_IDS):
            part = _bytes(encoding, ids[start : start + _PART_IDS], index)
            left -= len(part)
            if left < 0:
                message = (
                    f"The token ids stand for more than {max_bytes} bytes of text. Split the list."
                )
                raise PayloadTooLargeError(message, "payload_too_large", "input")
            parts.append(part)
        # A client that cuts long texts into chunks may cut a character in two.
        texts.append(b"".join(parts).decode("utf-8", errors="replace"))
    return texts


def _bytes(encoding: Any, ids: Sequence[int], index: int) -> bytes:
    try:
        return bytes(encoding.decode_bytes(ids))
    except (KeyError, OverflowError):
        param = f"input[{index}]"
        raise InvalidRequestError(
            f"{param} has a token id that {NAME} does not have.", "invalid_token_id", param
        ) from None
