"""The README says what the code does."""

import re

from tests.support.readme import README, ROOT, filled


def test_the_tables_are_those_of_the_code() -> None:
    """`python -m tests.support.readme` writes them."""
    text = README.read_text()

    assert text == filled(text)


def test_every_file_it_names_exists() -> None:
    """A reader can open what the text refers to."""
    named = set(
        re.findall(r"`((?:serve_app|tests|configs|benchmarks)/[\w./-]*)`", README.read_text())
    )

    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_make_command_it_names_exists() -> None:
    """A reader can run what the text refers to."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", README.read_text()))

    assert named <= targets
