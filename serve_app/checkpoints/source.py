"""Resolves a model's `source` setting to a local directory, downloading from the Hub if necessary.

This is the only module that imports huggingface_hub. It does not read the contents of the files.
"""

import importlib.util
from pathlib import Path

from huggingface_hub import snapshot_download

from serve_app.errors import ModelLoadError

SMALL_FILES = ("*.json", "*.txt", "*.model")
# Only safetensors: loading pickled weights runs code. `*.py` is for `trust_remote_code`.
WEIGHT_FILES = ("*.safetensors", "*.py")
OTHER_ENGINES = ("onnx/*", "openvino/*")


def resolve(source: str, *, revision: str | None = None, weights: bool = False) -> Path:
    """Return the local directory of a model's files; download them if the source is a Hub id.

    Args:
        source: a directory, `package:NAME/PATH` for a directory in an installed package, or a Hub
            id.
        revision: branch, tag or commit of a Hub id.
        weights: whether to download the weights in addition to the configuration files.

    Raises:
        ModelLoadError: the directory, package or Hub model does not exist, or the download failed.
    """
    directory = find_here(source)
    if directory is not None:
        return directory
    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=[*SMALL_FILES, *(WEIGHT_FILES if weights else ())],
                ignore_patterns=list(OTHER_ENGINES),
            )
        )
    except (OSError, ValueError) as error:  # huggingface_hub raises only subclasses of these
        raise ModelLoadError(
            f"source {source!r}: not a local directory, and the download from the Hub failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def find_here(source: str) -> Path | None:
    """Return the local directory of a source, or None if the source may be a Hub id.

    Raises:
        ModelLoadError: the source names a directory or a package that does not exist.
    """
    if source.startswith("package:"):
        return _package_directory(source)
    try:
        directory = Path(source).expanduser()
    except RuntimeError:  # `~name` of an unknown user
        raise ModelLoadError(f"source {source!r}: no such directory") from None
    if directory.is_dir():
        return directory.resolve()
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or directory.exists():
        raise ModelLoadError(f"source {source!r}: no such directory")
    return None


def _package_directory(source: str) -> Path:
    name, _, path = source.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name)  # locates the package without importing it
    except (ImportError, ValueError) as error:
        raise ModelLoadError(f"source {source!r}: no package is named {name!r}") from error
    if spec is None or spec.submodule_search_locations is None:
        raise ModelLoadError(f"source {source!r}: package {name!r} is not installed")
    for location in spec.submodule_search_locations:
        directory = Path(location) / path
        if directory.is_dir():
            return directory.resolve()
    raise ModelLoadError(f"source {source!r}: package {name!r} has no directory {path!r}")
