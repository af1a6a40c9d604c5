"""The commands and programs of the documentation do what it says, against a running server."""

import json
import re
import subprocess
import sys

import pytest

from tests.support.server import ROOT, Server

README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
URL = "http://127.0.0.1:8000"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


PROGRAMS = [
    pytest.param(program, id=f"{page}-{number}")
    for page, text in (("README", README), ("quickstart", QUICKSTART))
    for number, program in enumerate(blocks(text, "python"), 1)
]


@pytest.mark.parametrize("text", [README, QUICKSTART], ids=["README", "quickstart"])
def test_the_curl_command_prints_the_answer_shown(server: Server, text: str) -> None:
    command = re.findall(r"^curl .*$", text, re.MULTILINE)[0]
    shown = json.loads(blocks(text, "json")[0])

    done = subprocess.run(
        ["bash", "-c", command.replace(URL, server.url)],
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
    """Each block is a whole program."""
    server.run([sys.executable, "-c", program.replace(URL, server.url)])
