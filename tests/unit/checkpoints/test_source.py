from pathlib import Path

import pytest

from serve_app.checkpoints import source
from serve_app.errors import ModelLoadError


class FakeHub:
    """Stands for the Hub: notes what it is asked for and gives a directory, or fails."""

    def __init__(self, directory: Path, error: Exception | None = None) -> None:
        self.directory = directory
        self.error = error
        self.asked: list[tuple[str, str | None]] = []
        self.patterns: list[str] = []

    def __call__(  # noqa: D102 - the class says it
        self,
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        del ignore_patterns
        self.asked.append((repo_id, revision))
        self.patterns = allow_patterns
        if self.error:
            raise self.error
        return str(self.directory)


def test_a_directory_is_taken_by_any_name_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute, relative to the working directory, or from the home directory."""
    (tmp_path / "models" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    found = {
        source.resolve(name) for name in (str(tmp_path / "models/a"), "models/a", "~/models/a")
    }

    assert found == {(tmp_path / "models" / "a").resolve()}


def test_a_directory_in_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package whose import fails still gives its files."""
    (tmp_path / "bringsmodel" / "model").mkdir(parents=True)
    (tmp_path / "bringsmodel" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))

    found = source.resolve("package:bringsmodel/model")

    assert found == (tmp_path / "bringsmodel" / "model").resolve()


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/model",
        "./no",
        "~/no/such",
        "a/b/c",
        "package:no_such_package/x",
        "package:json/no",
        "package:",
    ],
)
def test_what_does_not_exist_fails_the_start(name: str) -> None:
    """The message repeats the source as the configuration has it."""
    with pytest.raises(ModelLoadError, match=name):
        source.resolve(name)


def test_a_file_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is not looked up on the Hub under its name."""
    (tmp_path / "model").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelLoadError, match="no such directory"):
        source.resolve("model")


@pytest.mark.parametrize(
    ("weights", "fetched"), [(False, set()), (True, {"*.safetensors", "*.py"})]
)
def test_a_hub_id_is_fetched_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, weights: bool, fetched: set[str]
) -> None:
    """The small files always, weights only when asked for, pickles never."""
    hub = FakeHub(tmp_path)
    monkeypatch.setattr(source, "snapshot_download", hub)

    found = source.resolve("someone/model", revision="v2", weights=weights)

    assert found == tmp_path
    assert hub.asked == [("someone/model", "v2")]
    assert set(hub.patterns) == {"*.json", "*.txt", "*.model"} | fetched


@pytest.mark.parametrize("error", [FileNotFoundError("nothing cached"), ValueError("no such id")])
def test_what_the_hub_cannot_give_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The Hub's own words are in the message."""
    monkeypatch.setattr(source, "snapshot_download", FakeHub(tmp_path, error))

    with pytest.raises(ModelLoadError, match=str(error)):
        source.resolve("someone/model")
