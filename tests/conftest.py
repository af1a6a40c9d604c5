"""Fixtures that several test modules use."""

import logging
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import tiny_checkpoint

# A background job of a shell ignores Ctrl-C, and the processes that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline per example: shared machines are sometimes slow.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For `pytest tests/unit/schemas/test_embeddings.py --hypothesis-profile long`, with over a hundred thousand bodies.
settings.register_profile("long", settings.get_profile("steady"), max_examples=60_000)
settings.load_profile("steady")


@pytest.fixture
def anyio_backend() -> str:
    """Run the tests marked `anyio` on asyncio, like the server."""
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A real tokenizer with a dozen words, [CLS] and [SEP], and a limit of eight tokens."""
    return Tokenizer(tiny_checkpoint(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Captures the server's log, even if Ray stops its records from reaching the root logger."""
    logger = logging.getLogger("ray.serve.embeddings")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(caplog.handler)
    try:
        yield caplog
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
        logger.propagate = propagate
