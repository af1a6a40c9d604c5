"""Fixtures that more than one module of tests needs."""

import logging
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import tiny_checkpoint

# A shell that runs the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Shared machines are slow now and then; a test is judged by what it finds.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For `pytest tests/unit/schemas/test_embeddings.py --hypothesis-profile long`: a hundred thousand bodies and more.
settings.register_profile("long", settings.get_profile("steady"), max_examples=60_000)
settings.load_profile("steady")


@pytest.fixture
def anyio_backend() -> str:
    """Run the tests marked `anyio` on asyncio, as the server runs."""
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A real tokenizer of a dozen words, with [CLS] and [SEP], that reads eight tokens."""
    return Tokenizer(tiny_checkpoint(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the server logs, whether or not Ray lets its loggers' records through to the root."""
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
