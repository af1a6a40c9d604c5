"""The engine that is always there: sentence-transformers' own modules, run by torch, on a CPU or a GPU."""

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

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation: the device goes on


class TorchEngine:
    """A SentenceTransformer as an engine; see `Engine` for its attributes and methods.

    Args:
        model: the SentenceTransformer, on its device.
        checkpoint: what its files say.
        threads: CPU threads; those that torch has when None.
        streams: how many passes a CPU computes side by side, where the model is known to keep nothing between passes.

    Attributes:
        modules: those of the model, less a Normalize at the end.
        reads_token_types: the first of them is given token types, all 0.
        includes_prompt: the pooling counts the prompt's tokens.
        dimensions: components of its vectors.
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
        # One computes while the next is being prepared: a GPU that waits for Python is a GPU that does nothing.
        self.passes_at_once = 2 if self._is_cuda else 1
        self.modules = _without_trailing_normalize(list(model.eval().children()))
        self.reads_empty = isinstance(self.modules[0], StaticEmbedding)
        self.pads = not self.reads_empty
        self._packed: PackedSequences | None = None
        first: Any = getattr(self.modules[0], "model", None)
        is_known = type(first).__module__.startswith("transformers.")  # not a model's own code
        self._keeps_nothing = is_known and not has_changing_positions(first.config)
        # Without padding there is nothing to mask. A mask would be looked at on a GPU, which waits for all before it.
        self._may_omit_mask = is_known
        self.streams = streams if self._keeps_nothing and not self._is_cuda else 1
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
        """Compute no padding from now on.

        Raises:
            CannotPackError: the model reads padded inputs only.
        """
        if not self._keeps_nothing:
            raise CannotPackError(
                "its positions depend on the lengths of the inputs, or it is code of its own"
            )
        if not self.includes_prompt and any("lasttoken" in _modes(m) for m in self.modules):
            # Of an input that is no longer than its prompt it would give the last token, and with padding zeros.
            raise CannotPackError("it pools the last token and leaves prompts out")
        self._packed = PackedSequences(self.modules[0], attention=attention)
        self.pads = False

    def unpack(self) -> None:
        """Undo `pack`."""
        if self._packed is not None:
            self._packed.unpack()
        self._packed, self.pads = None, True

    def start(self, features: Features, *, alone: bool) -> "_TorchPass | _StreamPass":
        """Start one pass; alone, a CPU has computed it by then, and a GPU has been told all that there is to do."""
        if not alone:
            return _StreamPass(
                self._pool.submit(self._compute, features, self._threads // self.streams)
            )
        with _telling_broken_devices():
            return self._compute(features, self._threads)

    def _compute(self, features: Features, threads: int) -> "_TorchPass":
        torch.set_num_threads(threads)  # of this thread; of MKL as a whole
        return self._forward(self._tensors(features))

    def recover(self) -> None:
        """Give the device's memory back."""
        if self._is_cuda:
            torch.cuda.empty_cache()

    def _tensors(self, features: Features) -> dict[str, Any]:
        """Return what the first module reads, as the tokenizer of sentence-transformers would make it."""
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
        if (
            self._is_cuda
        ):  # from pinned memory, which alone is copied without waiting for the device
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def _forward(self, tensors: dict[str, Any]) -> "_TorchPass":
        with torch.inference_mode():
            embeddings = run(self.modules, tensors)["sentence_embedding"]
            vectors = embeddings[:, : self.dimensions].float()
            finite = torch.isfinite(vectors).all(dim=1)
            if not self._is_cuda:
                return _TorchPass(vectors, finite)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            here = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in (vectors, finite)]
            here[0].copy_(vectors, non_blocking=True)
            here[1].copy_(finite, non_blocking=True)
            done.record()
            return _TorchPass(here[0], here[1], done)


@dataclass(frozen=True, slots=True)
class _TorchPass:
    """A pass whose vectors are here, or will be once the device has come to `done`."""

    vectors: torch.Tensor
    finite: torch.Tensor
    done: torch.cuda.Event | None = None

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors, and which of them are finite."""
        with _telling_broken_devices():
            if self.done is not None:
                self.done.synchronize()
        return self.vectors.numpy(), self.finite.numpy()


@dataclass(frozen=True, slots=True)
class _StreamPass:
    """A pass that a thread of its own computes."""

    computing: Future[_TorchPass]

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors, and which of them are finite."""
        return self.computing.result().result()


def has_changing_positions(config: Any) -> bool:
    """Tell whether a model's rotary positions depend on the longest input, and are kept from one pass to the next."""
    rotary = str(getattr(config, "rope_parameters", None))
    return any(f"'{kind}'" in rotary for kind in ("dynamic", "longrope"))


def run(modules: list[Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Return what modules of sentence-transformers make of features, one after the other."""
    for module in modules:
        tensors = module(tensors)
    return tensors


def _without_trailing_normalize(modules: list[Any]) -> list[Any]:
    """Return the modules less a Normalize at the end: unit length is made where vectors are written."""
    while (
        isinstance(modules[-1], Normalize)
        and modules[-1].module_output_name == "sentence_embedding"
    ):
        modules = modules[:-1]
    return modules


def _modes(module: Any) -> tuple[str, ...]:
    """Return how a module pools, if it does."""
    modes = getattr(module, "pooling_mode", ())
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _vocabulary_size(first: Any) -> int:
    if isinstance(first, StaticEmbedding):
        return int(first.num_embeddings)
    return int(first.model.get_input_embeddings().weight.shape[0])


@contextmanager
def _telling_broken_devices() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _breaks_the_device(error):
            raise EncoderBrokenError(type(error).__name__) from error
        raise


def _breaks_the_device(error: Exception) -> bool:
    """Tell whether a CUDA error stays: all do except those for want of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) != CUDA_OUT_OF_MEMORY
    return "CUDA error" in str(error) and "ALLOC_FAILED" not in str(error)
