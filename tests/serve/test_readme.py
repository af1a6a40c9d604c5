"""The README's commands and programs do what it says, against a server that runs."""

import json
import re
import subprocess
import sys

import pytest

from tests.support.server import ROOT, Server

README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_curl_command_prints_the_answer_that_is_shown(server: Server) -> None:
    """The second screen of a terminal."""
    command = re.findall(r"^curl .*$", README, re.MULTILINE)[0]
    shown = json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0])

    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", server.url)],
        capture_output=True,
        timeout=60,
        check=True,
    )

    answer = json.loads(done.stdout)
    numbers = shown["data"][0].pop("embedding")[:3]
    assert answer["data"][0].pop("embedding")[:3] == pytest.approx(numbers, abs=1e-5)
    assert answer == shown


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_run(server: Server, program: str) -> None:
    """Each Python block is a whole program."""
    server.run([sys.executable, "-c", program.replace("http://127.0.0.1:8000", server.url)])
