"""Where a model's files lie: from the `source` of the configuration to a directory on this machine.

The only home of huggingface_hub. Knows nothing of what the files say.
"""

import importlib.util
from pathlib import Path

from huggingface_hub import snapshot_download

from serve_app.errors import ModelLoadError

SMALL_FILES = ("*.json", "*.txt", "*.model")
# Weights are read from safetensors alone: pickled weights run code. `*.py` is what `trust_remote_code` runs.
WEIGHT_FILES = ("*.safetensors", "*.py")
OTHER_ENGINES = ("onnx/*", "openvino/*")


def resolve(source: str, *, revision: str | None = None, weights: bool = False) -> Path:
    """Return the directory that holds a model's files, fetched from the Hub if need be.

    Args:
        source: a directory, `package:NAME/PATH` for one inside an installed package, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        weights: fetch the weights as well.

    Raises:
        ModelLoadError: there is no such directory, package or Hub model.
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
    except (OSError, ValueError) as error:  # all errors of huggingface_hub are one of the two
        raise ModelLoadError(
            f"source {source!r}: not a directory here, and the Hub did not give it: {type(error).__name__}: {error}"
        ) from error


def find_here(source: str) -> Path | None:
    """Return the directory on this machine that a source names, or None where it can be a Hub id.

    Raises:
        ModelLoadError: it names a directory or a package that is not here.
    """
    if source.startswith("package:"):
        return _package_directory(source)
    try:
        directory = Path(source).expanduser()
    except RuntimeError:  # a home of nobody
        raise ModelLoadError(f"source {source!r}: there is no such directory") from None
    if directory.is_dir():
        return directory.resolve()
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or directory.exists():
        raise ModelLoadError(f"source {source!r}: there is no such directory")
    return None


def _package_directory(source: str) -> Path:
    name, _, path = source.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name)  # finds a package without running it
    except (ImportError, ValueError) as error:
        raise ModelLoadError(f"source {source!r}: {name!r} is no name of a package") from error
    if spec is None or spec.submodule_search_locations is None:
        raise ModelLoadError(f"source {source!r}: the package {name!r} is not installed")
    for location in spec.submodule_search_locations:
        directory = Path(location) / path
        if directory.is_dir():
            return directory.resolve()
    raise ModelLoadError(f"source {source!r}: the package {name!r} has no directory {path!r}")
