import asyncio
from typing import Any

import pytest
import tiktoken

from serve_app.errors import InvalidRequestError, PayloadTooLargeError
from serve_app.tokenization.openai_token_ids import Cl100k

pytestmark = pytest.mark.anyio

# Bytes and one pair, as an encoding of tiktoken's.
TINY = tiktoken.Encoding(
    "tiny",
    pat_str=r".+",
    mergeable_ranks={**{bytes([n]): n for n in range(256)}, b"hi": 256},
    special_tokens={},
)


def missing() -> Any:
    """Fail as where there is no network."""
    raise OSError("no network")


async def test_ids_become_the_text_that_they_stand_for() -> None:
    """Also in a thread, where there are many."""
    cl100k = Cl100k(lambda: TINY)

    assert await cl100k.decode([[256], list("é".encode())], max_bytes=4) == ["hi", "é"]
    assert await cl100k.decode([[256] * 30_000], max_bytes=60_000) == ["hi" * 30_000]


async def test_a_character_that_was_cut_in_two_stays_readable() -> None:
    """As the sign for what cannot be read."""
    assert await Cl100k(lambda: TINY).decode([[ord("a"), "é".encode()[0]]], max_bytes=1000) == [
        "a\ufffd"
    ]


@pytest.mark.parametrize("number", [257, 2**31, 2**70, -1])
async def test_an_id_that_there_is_not_names_its_input(number: int) -> None:
    """Whatever its size."""
    with pytest.raises(InvalidRequestError) as raised:
        await Cl100k(lambda: TINY).decode([[256], [number]], max_bytes=1000)

    assert raised.value.param == "input[1]"
    assert raised.value.code == "invalid_token_id"


@pytest.mark.parametrize("inputs", [[[256, 256, 256]], [[256]] * 3, [[256] * 30_000]])
async def test_ids_of_more_text_than_a_body_may_hold_are_refused(inputs: list[list[int]]) -> None:
    """A few thousand ids can stand for megabytes of spaces."""
    with pytest.raises(PayloadTooLargeError, match="more than 5 bytes"):
        await Cl100k(lambda: TINY).decode(inputs, max_bytes=5)


async def test_without_the_file_the_error_says_what_to_do(log: pytest.LogCaptureFixture) -> None:
    """For the client and for the operator."""
    with pytest.raises(InvalidRequestError, match="check_embedding_ctx_length=False") as raised:
        await Cl100k(missing).decode([[256]], max_bytes=1000)

    assert raised.value.code == "token_ids_not_accepted"
    assert "cannot be read: OSError" in log.text


async def test_a_file_that_does_not_come_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Later requests find it."""
    monkeypatch.setattr("serve_app.tokenization.openai_token_ids._PATIENCE_S", 0.01)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load() -> Any:
        assert asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return TINY

    cl100k = Cl100k(load)

    with pytest.raises(InvalidRequestError):
        await cl100k.decode([[256]], max_bytes=1000)

    release.set()
    monkeypatch.setattr("serve_app.tokenization.openai_token_ids._PATIENCE_S", 10)
    assert await cl100k.decode([[256]], max_bytes=1000) == ["hi"]
