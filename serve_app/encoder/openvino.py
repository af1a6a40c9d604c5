"""The engine for CPUs: the same modules as one OpenVINO graph, one call a pass.

Where prompts are left out of the pooling, the graph ends before it, and sentence-transformers' own module pools.
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

# By `dtype`: what OpenVINO calls it, and the capability that says that this processor computes in it.
PRECISIONS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


class OpenVinoEngine:
    """A graph, compiled for this processor, as an engine; see `Engine` for its attributes and methods.

    Args:
        graph: what `convert` gives, or the file in which it is kept.
        model: the same model in torch.
        dtype: `float32`, `bfloat16` or `float16`; the last two where this processor has units for them.
        threads: CPU threads; as OpenVINO chooses when None.
        streams: how many passes are computed side by side.

    Attributes:
        precision: in what it computes: `f32`, `bf16` or `f16`.
    """

    name = "openvino"
    device = "cpu"
    reads_empty = False
    pads = True
    passes_at_once = 1  # the request has one place for its output

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
        self._later = model.modules[_graph_end(model) :]
        self._dimensions = model.dimensions
        core = openvino.Core()
        precision, capability = PRECISIONS[dtype]
        able = capability in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = precision if able else "f32"
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,
            # Each process would pin its threads to the same first cores.
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
        """Start one pass; alone, it has been computed by then."""
        ids, mask = features.padded(self._pad_id)
        arrays = {"input_ids": ids, "attention_mask": mask}
        if alone:
            output = self._request.infer(arrays, share_inputs=True, share_outputs=True)[0]
            return Computed(*self._finished(output, features))
        request = self._idle.pop()
        try:
            request.start_async(arrays, share_inputs=True)
        except Exception:
            self._idle.append(request)
            raise
        return _StreamPass(self, request, features)

    def finish(self, request: openvino.InferRequest, features: Features) -> tuple[Vectors, Finite]:
        """Wait for a pass in a stream."""
        try:
            request.wait()
            return self._finished(request.get_output_tensor(0).data, features)
        finally:
            self._idle.append(request)

    def recover(self) -> None:
        """Do nothing: a failed pass leaves nothing."""

    def _finished(self, output: Any, features: Features) -> tuple[Vectors, Finite]:
        if self._later:
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
            return run(self._later, tensors)["sentence_embedding"].numpy()


@dataclass(frozen=True, slots=True)
class _StreamPass:
    """A pass that one of OpenVINO's streams computes."""

    engine: OpenVinoEngine
    request: openvino.InferRequest
    features: Features

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors, and which of them are finite."""
        return self.engine.finish(self.request, self.features)


def load_graph(model: TorchEngine, directory: Path, *, anew: bool = False) -> Any:
    """Return a model's graph, or the file in which it is kept.

    Args:
        model: the model in torch, in float32.
        directory: where its files lie.
        anew: convert it, also where a graph is kept.

    Raises:
        Exception: of any kind, when OpenVINO does not know what the model does.
    """
    path = graph_path(directory)
    if path is not None and path.exists() and not anew:
        return path
    end = _graph_end(model)
    graph = convert(
        model.modules[:end],
        output="token_embeddings" if end == 1 else "sentence_embedding",
        reads_token_types=model.reads_token_types,
    )
    # The file and not the graph, which holds on to torch's weights; the file is mapped, and shared between replicas.
    return path if path is not None and keep(graph, path) else graph


def _graph_end(model: TorchEngine) -> int:
    """Return how many modules become the graph: all, or the first where the pooling has to know the prompt's length."""
    return len(model.modules) if model.includes_prompt else 1
