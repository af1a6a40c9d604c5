"""The OpenVINO engine for CPUs. It runs all modules of the model as one graph, in one call.

If the pooling excludes the prompt, the graph ends before the pooling, and sentence-transformers'
own modules do the rest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from serve_app.encoder.engine import PASSES_PER_STREAM, Computed, Features, Finite, Pass
from serve_app.encoder.openvino_export import convert, graph_path, keep
from serve_app.encoder.torch import TorchEngine, run
from serve_app.messages import Vectors

# For each `dtype` setting: OpenVINO's name for the type, and the capability that OpenVINO reports for
# a processor that supports the type natively.
PRECISIONS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


class OpenVinoEngine:
    """An engine that runs a graph compiled for this processor; see `Engine` for its interface.

    Args:
        graph: the result of `convert`, or the file that caches it.
        model: the same model in torch.
        dtype: `float32`, `bfloat16` or `float16`. Half precision falls back to float32 if the
            processor does not support the type natively.
        threads: number of CPU threads; OpenVINO's default if None.
        streams: number of forward passes that run side by side, each on its part of the cores.

    Attributes:
        precision: the precision in use: `f32`, `bf16` or `f16`.
    """

    name = "openvino"
    device = "cpu"
    reads_empty = False
    pads = True
    passes_at_once = 1  # the infer request has one output buffer

    def __init__(
        self,
        graph: Any,
        model: TorchEngine,
        *,
        dtype: str,
        threads: int | None = None,
        streams: int = 1,
    ) -> None:
        self._pad_id = model.pad_id
        self.vocabulary_size = model.vocabulary_size
        self._modules_after_graph = model.modules[_graph_end(model) :]
        self._dimensions = model.dimensions
        core = openvino.Core()
        precision, capability = PRECISIONS[dtype]
        is_native = capability in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = precision if is_native else "f32"
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,
            # With pinning, every process would pin its threads to the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        whole = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self._request = core.compile_model(graph, "CPU", options | whole).create_infer_request()
        self.streams = streams
        self._idle: list[openvino.InferRequest] = []
        if streams > 1:
            parts = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
            compiled = core.compile_model(graph, "CPU", options | parts)
            self._idle += [
                compiled.create_infer_request() for _ in range(streams * PASSES_PER_STREAM)
            ]

    def start(self, features: Features, *, alone: bool) -> Pass:
        """Start a forward pass. If `alone`, the forward pass has finished on return."""
        ids, mask = features.padded(self._pad_id)
        arrays = {"input_ids": ids, "attention_mask": mask}
        if alone:
            output = self._request.infer(arrays, share_inputs=True, share_outputs=True)[0]
            return Computed(*self._to_vectors(output, features))
        request = self._idle.pop()
        try:
            request.start_async(arrays, share_inputs=True)
        except Exception:
            self._idle.append(request)
            raise
        return _StreamPass(self, request, features)

    def finish(self, request: openvino.InferRequest, features: Features) -> tuple[Vectors, Finite]:
        """Wait for a forward pass in a stream and free its infer request."""
        try:
            request.wait()
            return self._to_vectors(request.get_output_tensor(0).data, features)
        finally:
            self._idle.append(request)

    def recover(self) -> None:
        """Do nothing: a failed forward pass holds no resources."""

    def _to_vectors(self, output: Any, features: Features) -> tuple[Vectors, Finite]:
        if self._modules_after_graph:
            output = self._pool(output, features)
        vectors: Vectors = output[:, : self._dimensions]
        finite: Finite = np.logical_and.reduce(np.isfinite(vectors), axis=1)
        return vectors, finite

    def _pool(self, token_embeddings: Any, features: Features) -> Any:
        _, mask = features.padded(self._pad_id)
        tensors = {
            "token_embeddings": torch.from_numpy(token_embeddings),
            "attention_mask": torch.from_numpy(mask),
            "prompt_length": features.prompt_length,
        }
        with torch.inference_mode():
            return run(self._modules_after_graph, tensors)["sentence_embedding"].numpy()


@dataclass(frozen=True, slots=True)
class _StreamPass:
    """A forward pass in flight in one of OpenVINO's streams."""

    engine: OpenVinoEngine
    request: openvino.InferRequest
    features: Features

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors and a mask of the finite ones."""
        return self.engine.finish(self.request, self.features)


def load_graph(model: TorchEngine, directory: Path, *, rebuild: bool = False) -> Any:
    """Return a model's cached graph. If there is none, convert the model and cache the graph.

    Args:
        model: the model in torch, in float32.
        directory: the directory that contains the model's files.
        rebuild: whether to convert the model even if a graph is cached.

    Returns:
        The path of the cached graph, or the graph itself if it cannot be cached.

    Raises:
        Exception: OpenVINO cannot convert the model. The type is OpenVINO's choice.
    """
    path = graph_path(directory)
    if path is not None and path.exists() and not rebuild:
        return path
    end = _graph_end(model)
    graph = convert(
        model.modules[:end],
        output="token_embeddings" if end == 1 else "sentence_embedding",
        reads_token_types=model.reads_token_types,
    )
    # Prefer the file: the graph in memory keeps torch's weights alive, while the file is
    # memory-mapped and shared between replicas.
    return path if path is not None and keep(graph, path) else graph


def _graph_end(model: TorchEngine) -> int:
    """Return the number of modules in the graph.

    It is all modules, or only the first one if the pooling needs the prompt length.
    """
    return len(model.modules) if model.includes_prompt else 1
