"""schemathesis, for a short while: what it makes of `/openapi.json`, right and wrong, is answered as documented."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.server import ROOT, Server


@pytest.mark.timeout(300)
def test_every_answer_is_as_documented(server: Server) -> None:
    """`make fuzz` does the same with more examples, and with the values at the edges of the schema."""
    program = Path(sys.executable).with_name("st")

    done = subprocess.run(
        [
            *(program, "run", f"{server.url}/openapi.json", "--url", server.url),
            *("--phases", "examples,fuzzing", "--max-examples", "50"),
        ],
        cwd=ROOT,  # where schemathesis.toml is
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:]
    assert "17 passed" in done.stdout
