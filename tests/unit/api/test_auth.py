import os
import time
from pathlib import Path

import pytest

from serve_app.api.auth import UNNAMED, VARIABLE, ApiKeys
from serve_app.errors import UnauthorizedError

FILE = """
# who may come in
ada sk-1
sk-2
"""


def bearing(key: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request that carries a key."""
    return [(b"host", b"test"), (b"authorization", f"Bearer {key}".encode())]


def write(file: Path, text: str, *, age_s: float) -> None:
    """Write a file so that it was last changed so long ago."""
    file.write_text(text)
    then = time.time() - age_s
    os.utime(file, (then, then))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a file of two keys."""
    path = tmp_path / "keys"
    path.write_text(FILE)
    return path


def test_without_keys_everyone_may_come_in() -> None:
    """And is nobody in particular."""
    keys = ApiKeys(None, {})

    assert not keys.are_required
    assert keys.authenticate(bearing("any")) == ""


def test_keys_of_the_file_and_of_the_environment_are_valid(file: Path) -> None:
    """Each with its name."""
    keys = ApiKeys(str(file), {VARIABLE: "grace sk-3, sk-4"})

    owners = [keys.authenticate(bearing(key)) for key in ("sk-1", "sk-2", "sk-3", "sk-4")]

    assert owners == ["ada", UNNAMED, "grace", UNNAMED]


def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    """It was meant to hold some."""
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n")

    with pytest.raises(UnauthorizedError):
        ApiKeys(str(empty), {}).authenticate(bearing("any"))


def test_keys_come_and_go_without_a_restart(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file, which is looked at again."""
    monkeypatch.setattr("serve_app.api.auth._LOOK_EVERY_S", 0.0)
    keys = ApiKeys(str(file), {})

    write(file, "eve sk-5\n", age_s=5)

    assert keys.authenticate(bearing("sk-5")) == "eve"
    with pytest.raises(UnauthorizedError):
        keys.authenticate(bearing("sk-1"))


def test_a_file_that_is_being_written_is_not_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be empty just now, or end within a key; whoever had one would be turned away."""
    monkeypatch.setattr("serve_app.api.auth._LOOK_EVERY_S", 0.0)
    keys = ApiKeys(str(file), {})

    write(file, "ada sk", age_s=0)

    assert keys.authenticate(bearing("sk-1")) == "ada"
    with pytest.raises(UnauthorizedError):
        keys.authenticate(bearing("sk"))


@pytest.mark.parametrize("spoil", ["remove", "mistake"])
def test_a_file_that_cannot_be_read_again_changes_nothing(
    file: Path, spoil: str, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """The keys stay, and the log says so without a key."""
    monkeypatch.setattr("serve_app.api.auth._LOOK_EVERY_S", 0.0)
    keys = ApiKeys(str(file), {})

    if spoil == "remove":
        file.unlink()
    else:
        write(file, "one two sk-9\n", age_s=5)

    assert keys.authenticate(bearing("sk-1")) == "ada"
    assert "the keys stay as they were" in log.text
    assert "sk-9" not in log.text


def test_a_file_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    """A server that should be closed does not open."""
    with pytest.raises(ValueError, match="cannot be read"):
        ApiKeys(str(tmp_path / "nowhere"), {})


def test_a_mistake_in_the_file_ends_the_start_and_tells_no_key(file: Path) -> None:
    """It names the line."""
    file.write_text("ada sk-1\none two sk-9\n")

    with pytest.raises(ValueError, match="line 2") as raised:
        ApiKeys(str(file), {})

    assert "sk-9" not in str(raised.value)


def test_the_environment_is_the_process_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is given."""
    monkeypatch.setenv(VARIABLE, "sk-1")

    assert os.environ[VARIABLE] == "sk-1"
    assert ApiKeys(None).are_required


@pytest.mark.parametrize("given", [",", " ", "#", "# off"])
def test_a_variable_that_is_set_and_holds_no_key_stops_the_start(given: str) -> None:
    """Instead of letting everybody in."""
    with pytest.raises(ValueError, match="holds no key"):
        ApiKeys(None, {VARIABLE: given})


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    """As some editors write it; and a scheme may end in any white space."""
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfalice sk-1\n")

    assert ApiKeys(str(file), {}).authenticate([(b"authorization", b"Bearer\tsk-1")]) == "alice"


def test_a_comment_behind_a_key_makes_no_name_of_it() -> None:
    """Names are in the log and in the metrics."""
    with pytest.raises(ValueError, match="line 1") as raised:
        ApiKeys(None, {VARIABLE: "sk-secret #alice"})

    assert "sk-secret" not in str(raised.value)
