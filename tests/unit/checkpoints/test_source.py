from pathlib import Path

import pytest

from serve_app.checkpoints import source
from serve_app.errors import ModelLoadError


class FakeHub:
    """A fake of `snapshot_download` that records its calls and returns a directory or raises."""

    def __init__(self, directory: Path, error: Exception | None = None) -> None:
        self.directory = directory
        self.error = error
        self.calls: list[tuple[str, str | None]] = []
        self.patterns: list[str] = []

    def __call__(  # noqa: D102
        self,
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        del ignore_patterns
        self.calls.append((repo_id, revision))
        self.patterns = allow_patterns
        if self.error:
            raise self.error
        return str(self.directory)


def test_a_directory_resolves_from_any_form_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    directories = {
        source.resolve(name) for name in (str(tmp_path / "models/a"), "models/a", "~/models/a")
    }

    assert directories == {(tmp_path / "models" / "a").resolve()}


def test_a_directory_in_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packaged" / "model").mkdir(parents=True)
    (tmp_path / "packaged" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))

    directory = source.resolve("package:packaged/model")

    assert directory == (tmp_path / "packaged" / "model").resolve()


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
def test_a_missing_source_fails_the_start(name: str) -> None:
    with pytest.raises(ModelLoadError, match=name):
        source.resolve(name)


def test_a_file_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelLoadError, match="no such directory"):
        source.resolve("model")


@pytest.mark.parametrize(
    ("weights", "weight_patterns"), [(False, set()), (True, {"*.safetensors", "*.py"})]
)
def test_a_hub_id_is_downloaded_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, weights: bool, weight_patterns: set[str]
) -> None:
    hub = FakeHub(tmp_path)
    monkeypatch.setattr(source, "snapshot_download", hub)

    directory = source.resolve("someone/model", revision="v2", weights=weights)

    assert directory == tmp_path
    assert hub.calls == [("someone/model", "v2")]
    assert set(hub.patterns) == {"*.json", "*.txt", "*.model"} | weight_patterns


@pytest.mark.parametrize("error", [FileNotFoundError("nothing cached"), ValueError("no such id")])
def test_a_failed_download_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(source, "snapshot_download", FakeHub(tmp_path, error))

    with pytest.raises(ModelLoadError, match=str(error)):
        source.resolve("someone/model")
