import asyncio
from typing import Any

import pytest
import tiktoken

from serve_app.errors import InvalidRequestError, PayloadTooLargeError
from serve_app.tokenization.openai_token_ids import Cl100k

pytestmark = pytest.mark.anyio

# A tiktoken encoding of the single bytes and one pair.
TINY = tiktoken.Encoding(
    "tiny",
    pat_str=r".+",
    mergeable_ranks={**{bytes([n]): n for n in range(256)}, b"hi": 256},
    special_tokens={},
)


def missing() -> Any:
    """Fail like tiktoken without a network."""
    raise OSError("no network")


async def test_ids_are_decoded_to_their_text() -> None:
    cl100k = Cl100k(lambda: TINY)

    assert await cl100k.decode([[256], list("é".encode())], max_bytes=4) == ["hi", "é"]
    assert await cl100k.decode([[256] * 30_000], max_bytes=60_000) == ["hi" * 30_000]


async def test_half_a_character_becomes_a_replacement_character() -> None:
    assert await Cl100k(lambda: TINY).decode([[ord("a"), "é".encode()[0]]], max_bytes=1000) == [
        "a\ufffd"
    ]


@pytest.mark.parametrize("number", [257, 2**31, 2**70, -1])
async def test_the_error_for_an_unknown_id_names_its_input(number: int) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await Cl100k(lambda: TINY).decode([[256], [number]], max_bytes=1000)

    assert raised.value.param == "input[1]"
    assert raised.value.code == "invalid_token_id"


@pytest.mark.parametrize("inputs", [[[256, 256, 256]], [[256]] * 3, [[256] * 30_000]])
async def test_ids_that_decode_to_too_much_text_are_rejected(inputs: list[list[int]]) -> None:
    """A few thousand ids can stand for megabytes of spaces."""
    with pytest.raises(PayloadTooLargeError, match="more than 5 bytes"):
        await Cl100k(lambda: TINY).decode(inputs, max_bytes=5)


async def test_the_error_for_a_missing_file_says_what_to_do(log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidRequestError, match="check_embedding_ctx_length=False") as raised:
        await Cl100k(missing).decode([[256]], max_bytes=1000)

    assert raised.value.code == "token_ids_not_accepted"
    assert "cannot load the cl100k_base encoding: OSError" in log.text


async def test_requests_wait_a_limited_time_for_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.tokenization.openai_token_ids._LOAD_TIMEOUT_S", 0.01)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load() -> Any:
        assert asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return TINY

    cl100k = Cl100k(load)

    with pytest.raises(InvalidRequestError):
        await cl100k.decode([[256]], max_bytes=1000)

    release.set()
    monkeypatch.setattr("serve_app.tokenization.openai_token_ids._LOAD_TIMEOUT_S", 10)
    assert await cl100k.decode([[256]], max_bytes=1000) == ["hi"]
