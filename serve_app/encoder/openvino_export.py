"""From torch modules to an OpenVINO graph, kept on disk so that the next start reads it.

A graph is kept under a name made of everything that it was made from: each of the model's files, byte for byte, and
the versions of the libraries. It can be deleted at any time. Whatever goes wrong with the disk costs a conversion and
nothing else.
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

GRAPH_FORMAT = "1"  # of `_Traceable`: another number makes another name
GRAPH_FILE = "graph.xml"
# What a model is made of; a Hub snapshot may hold other formats of the same weights beside it.
MODEL_FILES = frozenset({".json", ".py", ".safetensors", ".txt"})


class _Traceable(torch.nn.Module):
    """Modules of sentence-transformers with the signature that a tracer asks for: tensors in, one tensor out."""

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
    """Return the modules as an OpenVINO graph of `input_ids` and `attention_mask`, both int64 [inputs, length].

    Args:
        modules: of sentence-transformers, in float32.
        output: the feature that the graph gives.
        reads_token_types: the first module is given token types, all 0.

    Raises:
        Exception: of any kind, when OpenVINO does not know what the modules do.
    """
    module = _Traceable(modules, output=output, reads_token_types=reads_token_types).eval()
    ids = torch.ones(3, 9, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    # The two steps of `openvino.convert_model`, without its third: it reports each use to its vendor.
    with torch.inference_mode(), _quietly():
        decoder = TorchScriptPythonDecoder(module, example_input=(ids, mask))
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def graph_path(directory: Path) -> Path | None:
    """Return where the graph of a model is kept, whether or not it is there yet; None where there is no such place."""
    try:
        return _cache_directory() / _identity(directory) / GRAPH_FILE
    except (OSError, RuntimeError) as error:
        logger.info("no cache of converted models: %s", error)
        return None


def keep(graph: Any, path: Path) -> bool:
    """Write a graph, wholly or not at all; return whether it is there now."""
    try:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent.parent, prefix="new-") as draft:
            openvino.save_model(graph, Path(draft) / GRAPH_FILE, compress_to_fp16=False)
            shutil.rmtree(path.parent, ignore_errors=True)  # one that could not be used
            Path(draft).rename(path.parent)
            Path(draft).mkdir()  # for the end of the block
    except (OSError, RuntimeError) as error:  # OpenVINO raises the latter when the disk is full
        logger.info("the converted model is not kept: %s", error)
    return path.exists()


def _cache_directory() -> Path:
    """Return the user's directory of things that can be made again, as the XDG base directories have it."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "ray-embeddings-server" / "openvino"


def _identity(directory: Path) -> str:
    """Return a name for the model's files and for the libraries that make a graph of them."""
    versions = (openvino, torch, transformers, sentence_transformers)
    digest = hashlib.sha256(" ".join([GRAPH_FORMAT, *(v.__version__ for v in versions)]).encode())
    for path in sorted(directory.rglob("*")):
        if path.suffix in MODEL_FILES and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(str(path.relative_to(directory)).encode() + b"\0" + content)
    return digest.hexdigest()[:32]


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide what tracing says of every model: that a trace may not fit other shapes. Here the result is compared."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
