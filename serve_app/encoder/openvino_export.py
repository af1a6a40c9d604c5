"""Converts torch modules to an OpenVINO graph, and caches the graph on disk for the next start.

The cache key is a hash of the model's files and of the versions of the libraries that convert the
model. The cache can be deleted at any time. The only effect of a disk error is that the next start
converts the model again.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openvino
import sentence_transformers
import torch
import transformers
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

from serve_app.encoder.torch import run

logger = logging.getLogger("ray.serve.embeddings")

GRAPH_FORMAT = "1"  # part of the cache key; increase it when `_Traceable` changes
GRAPH_FILE = "graph.xml"
# The files that define a model. A Hub snapshot may hold the same weights in other formats too.
MODEL_FILES = frozenset({".json", ".py", ".safetensors", ".txt"})


class _Traceable(torch.nn.Module):
    """sentence-transformers modules with the signature that a tracer needs: tensors in, one tensor out."""

    def __init__(self, modules: list[Any], *, output: str, reads_token_types: bool) -> None:
        super().__init__()
        self._pipeline = torch.nn.ModuleList(modules)
        self._output = output
        self._reads_token_types = reads_token_types

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._reads_token_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        embeddings: torch.Tensor = run(list(self._pipeline), features)[self._output]
        return embeddings


def convert(modules: list[Any], *, output: str, reads_token_types: bool) -> Any:
    """Convert modules to an OpenVINO graph.

    The graph's inputs are `input_ids` and `attention_mask`, both int64 [inputs, length].

    Args:
        modules: sentence-transformers modules, in float32.
        output: the name of the feature that the graph returns.
        reads_token_types: whether to pass token type ids, all 0, to the first module.

    Raises:
        Exception: OpenVINO cannot convert the modules. The type is OpenVINO's choice.
    """
    module = _Traceable(modules, output=output, reads_token_types=reads_token_types).eval()
    ids = torch.ones(3, 9, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    # These are the steps of `openvino.convert_model`, without its telemetry, which reports each use
    # to the vendor.
    with torch.inference_mode(), _without_tracer_warnings():
        decoder = TorchScriptPythonDecoder(module, example_input=(ids, mask))
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def graph_path(directory: Path) -> Path | None:
    """Return the cache path of a model's graph, or None if there can be no cache.

    The file may not exist yet.
    """
    try:
        return _cache_directory() / _identity(directory) / GRAPH_FILE
    except (OSError, RuntimeError) as error:
        logger.info("converted models are not cached: %s", error)
        return None


def keep(graph: Any, path: Path) -> bool:
    """Write a graph to the cache atomically; return whether the file exists afterwards."""
    try:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent.parent, prefix="new-") as draft:
            openvino.save_model(graph, Path(draft) / GRAPH_FILE, compress_to_fp16=False)
            shutil.rmtree(path.parent, ignore_errors=True)  # an older graph that could not be used
            Path(draft).rename(path.parent)
            Path(draft).mkdir()  # TemporaryDirectory expects to remove this directory
    except (OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError if the disk is full
        logger.info("the converted model cannot be cached: %s", error)
    return path.exists()


def _cache_directory() -> Path:
    """Return this server's cache directory; see the XDG Base Directory Specification."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "ray-embeddings-server" / "openvino"


def _identity(directory: Path) -> str:
    """Return the cache key: a hash of the model's files and of the versions of the libraries."""
    versions = (openvino, torch, transformers, sentence_transformers)
    digest = hashlib.sha256(" ".join([GRAPH_FORMAT, *(v.__version__ for v in versions)]).encode())
    for path in sorted(directory.rglob("*")):
        if path.suffix in MODEL_FILES and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(str(path.relative_to(directory)).encode() + b"\0" + content)
    return digest.hexdigest()[:32]


@contextmanager
def _without_tracer_warnings() -> Iterator[None]:
    """Suppress warnings that a trace may not generalize, because `loading` compares the vectors."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
