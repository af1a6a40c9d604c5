"""A short schemathesis run: valid and invalid requests generated from `/openapi.json` get documented responses."""

import re
import sys
from pathlib import Path

import pytest
import requests

from tests.support.server import Server


@pytest.mark.slow
@pytest.mark.both_modes
def test_every_response_matches_the_openapi_document(server: Server) -> None:
    """`make fuzz` does the same with more examples and with values at the schema's boundaries."""
    program = str(Path(sys.executable).with_name("st"))

    printed = server.run(
        [
            *(program, "run", f"{server.url}/openapi.json", "--url", server.url),
            *("--phases", "examples,fuzzing", "--max-examples", "50"),
            "--generation-deterministic",  # random exploration is left to `make fuzz`
        ],
        timeout_s=280,
    )

    document = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    operations = sum(len(path) for path in document["paths"].values())
    assert re.search(rf"\b{operations} passed", printed), printed
