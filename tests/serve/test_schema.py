"""schemathesis, for a short while: what it makes of `/openapi.json`, right and wrong, is answered as documented."""

import sys
from pathlib import Path

import pytest

from tests.support.server import Server


@pytest.mark.slow
@pytest.mark.both_modes
def test_every_answer_is_as_documented(server: Server) -> None:
    """`make fuzz` does the same with more examples, and with the values at the edges of the schema."""
    program = str(Path(sys.executable).with_name("st"))

    printed = server.run(
        [
            *(program, "run", f"{server.url}/openapi.json", "--url", server.url),
            *("--phases", "examples,fuzzing", "--max-examples", "50"),
            "--generation-deterministic",  # what chance finds is for `make fuzz`
        ],
        timeout_s=280,
    )

    assert "20 passed" in printed
