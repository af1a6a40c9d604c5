import os
import time
from pathlib import Path

import pytest

from serve_app.api.auth import UNNAMED, VARIABLE, ApiKeys
from serve_app.errors import UnauthorizedError

FILE = """
# the clients
ada sk-1
sk-2
"""


def bearing(key: str) -> list[tuple[bytes, bytes]]:
    """Return request headers with a bearer key."""
    return [(b"host", b"test"), (b"authorization", f"Bearer {key}".encode())]


def write_aged(file: Path, text: str, *, age_s: float) -> None:
    """Write a file whose modification time lies `age_s` seconds in the past."""
    file.write_text(text)
    modified = time.time() - age_s
    os.utime(file, (modified, modified))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(FILE)
    return path


def test_without_keys_every_request_is_allowed() -> None:
    keys = ApiKeys(None, {})

    assert not keys.are_required
    assert keys.authenticate(bearing("any")) == ""


def test_keys_from_the_file_and_the_environment_are_valid(file: Path) -> None:
    keys = ApiKeys(str(file), {VARIABLE: "grace sk-3, sk-4"})

    owners = [keys.authenticate(bearing(key)) for key in ("sk-1", "sk-2", "sk-3", "sk-4")]

    assert owners == ["ada", UNNAMED, "grace", UNNAMED]


def test_a_file_without_keys_rejects_every_request(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n")

    with pytest.raises(UnauthorizedError):
        ApiKeys(str(empty), {}).authenticate(bearing("any"))


def test_a_changed_file_is_reloaded_without_a_restart(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.api.auth._CHECK_INTERVAL_S", 0.0)
    keys = ApiKeys(str(file), {})

    write_aged(file, "eve sk-5\n", age_s=5)

    assert keys.authenticate(bearing("sk-5")) == "eve"
    with pytest.raises(UnauthorizedError):
        keys.authenticate(bearing("sk-1"))


def test_a_file_that_has_just_changed_is_not_reloaded(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be half-written, which would reject valid keys."""
    monkeypatch.setattr("serve_app.api.auth._CHECK_INTERVAL_S", 0.0)
    keys = ApiKeys(str(file), {})

    write_aged(file, "ada sk", age_s=0)

    assert keys.authenticate(bearing("sk-1")) == "ada"
    with pytest.raises(UnauthorizedError):
        keys.authenticate(bearing("sk"))


@pytest.mark.parametrize("damage", ["remove", "mistake"])
def test_a_failed_reload_keeps_the_previous_keys(
    file: Path, damage: str, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serve_app.api.auth._CHECK_INTERVAL_S", 0.0)
    keys = ApiKeys(str(file), {})

    if damage == "remove":
        file.unlink()
    else:
        write_aged(file, "one two sk-9\n", age_s=5)

    assert keys.authenticate(bearing("sk-1")) == "ada"
    assert "the previous keys stay valid" in log.text
    assert "sk-9" not in log.text


def test_a_missing_file_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        ApiKeys(str(tmp_path / "nowhere"), {})


def test_an_error_in_the_file_names_the_line_and_no_key(file: Path) -> None:
    file.write_text("ada sk-1\none two sk-9\n")

    with pytest.raises(ValueError, match="line 2") as raised:
        ApiKeys(str(file), {})

    assert "sk-9" not in str(raised.value)


def test_the_default_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sk-1")

    assert os.environ[VARIABLE] == "sk-1"
    assert ApiKeys(None).are_required


@pytest.mark.parametrize("given", [",", " ", "#", "# off"])
def test_a_variable_without_a_key_is_an_error_at_start(given: str) -> None:
    with pytest.raises(ValueError, match="contains no key"):
        ApiKeys(None, {VARIABLE: given})


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfalice sk-1\n")

    assert ApiKeys(str(file), {}).authenticate([(b"authorization", b"Bearer\tsk-1")]) == "alice"


def test_a_key_before_a_comment_does_not_become_a_name() -> None:
    """Names are logged and exported as metrics."""
    with pytest.raises(ValueError, match="line 1") as raised:
        ApiKeys(None, {VARIABLE: "sk-secret #alice"})

    assert "sk-secret" not in str(raised.value)
