"""The torch engine, which runs sentence-transformers' own modules on a CPU or a GPU.

This engine needs no optional package, so it is always available.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch.nn.attention.varlen import varlen_attn

from serve_app.checkpoints.metadata import Checkpoint
from serve_app.encoder.engine import EncoderBrokenError, Features, Finite
from serve_app.encoder.varlen import Attention, CannotPackError, PackedSequences
from serve_app.messages import Vectors

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation; the device stays usable


class TorchEngine:
    """An engine that runs a SentenceTransformer; see `Engine` for its interface.

    Args:
        model: the SentenceTransformer, on its device.
        checkpoint: the model's metadata.
        threads: number of CPU threads; torch's current number if None.
        streams: number of forward passes that a CPU computes side by side, each on its part of the
            cores. Ignored on a GPU, and if the model may keep state between forward passes.

    Attributes:
        modules: the model's modules. Normalize modules at the end are left out, because the ingress
            normalizes vectors.
        reads_token_types: whether the first module reads token type ids, which are all 0.
        includes_prompt: whether the pooling includes the prompt's tokens.
        dimensions: number of components in a vector.
    """

    name = "torch"

    def __init__(
        self,
        model: SentenceTransformer,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        streams: int = 1,
    ) -> None:
        self.device = str(model.device)
        self._is_cuda = self.device.startswith("cuda")
        # The GPU runs one forward pass while Python prepares the next, so that it never idles.
        self.passes_at_once = 2 if self._is_cuda else 1
        self.modules = _without_trailing_normalize(list(model.eval().children()))
        self.reads_empty = isinstance(self.modules[0], StaticEmbedding)
        self.pads = not self.reads_empty
        self._packed: PackedSequences | None = None
        first: Any = getattr(self.modules[0], "model", None)
        # Custom code that comes with a model may keep state or need a mask.
        is_known = type(first).__module__.startswith("transformers.")
        self._is_stateless = is_known and not has_changing_positions(first.config)
        # Without padding there is nothing to mask. On a GPU, a model that reads a mask waits for all
        # earlier work.
        self._may_omit_mask = is_known
        self.streams = streams if self._is_stateless and not self._is_cuda else 1
        self._threads = threads or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.streams, thread_name_prefix="stream")
        self.pad_id: int = getattr(model.tokenizer, "pad_token_id", None) or 0
        self.reads_token_types = "token_type_ids" in getattr(
            model.tokenizer, "model_input_names", ()
        )
        self.vocabulary_size = _vocabulary_size(self.modules[0])
        self.includes_prompt = checkpoint.include_prompt
        self.dimensions = checkpoint.dimensions

    def pack(self, attention: Attention = varlen_attn) -> None:
        """Run without padding from now on.

        Raises:
            CannotPackError: the model needs padded inputs.
        """
        if not self._is_stateless:
            raise CannotPackError(
                "the model's rotary positions depend on the input length, or it runs custom code"
            )
        if not self.includes_prompt and any("lasttoken" in _pooling_modes(m) for m in self.modules):
            # For an input no longer than its prompt, sentence-transformers pools the last token if
            # inputs are packed, but returns zeros if they are padded.
            raise CannotPackError(
                "the model's pooling takes the last token and excludes the prompt"
            )
        self._packed = PackedSequences(self.modules[0], attention=attention)
        self.pads = False

    def unpack(self) -> None:
        """Undo `pack`."""
        if self._packed is not None:
            self._packed.unpack()
        self._packed, self.pads = None, True

    def start(self, features: Features, *, alone: bool) -> "_TorchPass | _StreamPass":
        """Start a forward pass.

        If `alone` on a CPU, the forward pass has finished on return. On a GPU, all kernels of the
        forward pass are queued on return.
        """
        if not alone:
            return _StreamPass(
                self._pool.submit(self._compute, features, self._threads // self.streams)
            )
        with _detecting_broken_devices():
            return self._compute(features, self._threads)

    def _compute(self, features: Features, threads: int) -> "_TorchPass":
        torch.set_num_threads(threads)  # for this thread; MKL's setting is global
        return self._forward(self._tensors(features))

    def recover(self) -> None:
        """Release the GPU's cached memory."""
        if self._is_cuda:
            torch.cuda.empty_cache()

    def _tensors(self, features: Features) -> dict[str, Any]:
        """Return the first module's features, as sentence-transformers' tokenizer returns them."""
        if self.reads_empty:
            return {
                "input_ids": self._tensor(features.ids),
                "offsets": self._tensor(features.starts),
            }
        tensors: dict[str, Any] = {}
        if self._packed is not None:
            tensors |= self._packed.tensors(features, self._tensor)
        else:
            ids, mask = features.padded(self.pad_id)
            tensors["input_ids"] = self._tensor(ids)
            if not (self._may_omit_mask and mask.all()):
                tensors["attention_mask"] = self._tensor(mask)
        if self.reads_token_types:
            tensors["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
        if not self.includes_prompt:
            tensors["prompt_length"] = features.prompt_length
        return tensors

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._is_cuda:  # only copies from pinned memory do not wait for the device
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def _forward(self, tensors: dict[str, Any]) -> "_TorchPass":
        with torch.inference_mode():
            embeddings = run(self.modules, tensors)["sentence_embedding"]
            vectors = embeddings[:, : self.dimensions].float()
            finite = torch.isfinite(vectors).all(dim=1)
            if not self._is_cuda:
                return _TorchPass(vectors, finite)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            host_vectors = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            host_finite = torch.empty(finite.shape, dtype=finite.dtype, pin_memory=True)
            host_vectors.copy_(vectors, non_blocking=True)
            host_finite.copy_(finite, non_blocking=True)
            copied.record()
            return _TorchPass(host_vectors, host_finite, copied)


@dataclass(frozen=True, slots=True)
class _TorchPass:
    """A forward pass. A GPU's vectors are in host memory once the event `copied` completes."""

    vectors: torch.Tensor
    finite: torch.Tensor
    copied: torch.cuda.Event | None = None

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors and a mask of the finite ones."""
        with _detecting_broken_devices():
            if self.copied is not None:
                self.copied.synchronize()
        return self.vectors.numpy(), self.finite.numpy()


@dataclass(frozen=True, slots=True)
class _StreamPass:
    """A forward pass in flight in a stream's thread."""

    future: Future[_TorchPass]

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors and a mask of the finite ones."""
        return self.future.result().result()


def has_changing_positions(config: Any) -> bool:
    """Return whether the rotary positions depend on the longest input and are kept after a forward pass."""
    rotary = str(getattr(config, "rope_parameters", None))
    return any(f"'{kind}'" in rotary for kind in ("dynamic", "longrope"))


def run(modules: list[Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Run sentence-transformers modules in sequence, and return the output of the last one."""
    for module in modules:
        tensors = module(tensors)
    return tensors


def _without_trailing_normalize(modules: list[Any]) -> list[Any]:
    """Drop Normalize modules at the end of the model, because the ingress normalizes vectors."""
    while (
        isinstance(modules[-1], Normalize)
        and modules[-1].module_output_name == "sentence_embedding"
    ):
        modules = modules[:-1]
    return modules


def _pooling_modes(module: Any) -> tuple[str, ...]:
    """Return the pooling modes of a module; empty if it is not a Pooling."""
    modes = getattr(module, "pooling_mode", ())
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _vocabulary_size(first: Any) -> int:
    if isinstance(first, StaticEmbedding):
        return int(first.num_embeddings)
    return int(first.model.get_input_embeddings().weight.shape[0])


@contextmanager
def _detecting_broken_devices() -> Iterator[None]:
    """Raise `EncoderBrokenError` for an error that leaves the device unusable."""
    try:
        yield
    except Exception as error:
        if _breaks_the_device(error):
            raise EncoderBrokenError(type(error).__name__) from error
        raise


def _breaks_the_device(error: Exception) -> bool:
    """Return whether an error leaves the device unusable: every CUDA error does, except out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) != CUDA_OUT_OF_MEMORY
    return "CUDA error" in str(error) and "ALLOC_FAILED" not in str(error)
