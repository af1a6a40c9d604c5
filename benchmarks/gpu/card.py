"""The GPU under test, or a CPU in its place, and helpers that all parts share: loading, timing, inputs."""

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.random_models import SIZES, Size
from serve_app.encoder import Encoder, default_batch_tokens, load_encoder
from serve_app.encoder.torch import TorchEngine
from serve_app.encoder.varlen import CannotPackError
from serve_app.messages import TokenizedInputs, Vectors
from tests.support.attention import one_by_one

_BEGAN = time.monotonic()
# Maximum number of launches that a timed loop queues before it waits for the device.
_QUEUED = 20


def print_status(*words: object) -> None:
    """Print a line, prefixed with the seconds since the start."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s ", *words, flush=True)


@dataclass(frozen=True, slots=True)
class Card:
    """The device under test and the parameters of the run.

    Attributes:
        is_dry: whether to run on a CPU with tiny models.
        dtype: the half-precision dtype for speed measurements.
        sizes: names of the models whose speed is measured.
        out: the folder for the results.
        ends: the deadline, in `time.monotonic` seconds.
    """

    is_dry: bool
    dtype: str
    sizes: Sequence[str]
    out: Path
    ends: float

    @property
    def device(self) -> str:
        """The torch device."""
        return "cpu" if self.is_dry else "cuda"

    @property
    def budget(self) -> int:
        """The token budget of a batch."""
        return default_batch_tokens(self.device)

    @staticmethod
    def all_sizes() -> list[str]:
        """Return the names of all available models."""
        return list(SIZES)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.ends - time.monotonic()

    @property
    def precisions(self) -> tuple[str, ...]:
        """The dtypes whose vectors are compared with float32 on a CPU."""
        return ("float32",) if self.is_dry else ("float16", "bfloat16")

    def size(self, name: str) -> Size:
        """Return the shape of a model."""
        return Size(layers=2, width=32, heads=4) if self.is_dry else SIZES[name]

    def load(
        self,
        directory: Path,
        dtype: str | None = None,
        *,
        padding: str = "auto",
        warm_up: bool = True,
    ) -> Encoder:
        """Load a model as a replica does. On a CPU, a substitute replaces the attention for packed inputs."""
        if not self.is_dry:
            return load_encoder(
                str(directory),
                device=self.device,
                dtype=dtype or self.dtype,
                padding=padding,
                warm_up=warm_up,
                max_batch_tokens=self.budget,
            )
        encoder = load_encoder(
            str(directory),
            device="cpu",
            engine="torch",
            warm_up=False,
            max_batch_tokens=self.budget,
        )
        if padding == "auto":
            with contextlib.suppress(CannotPackError):
                torch_engine(encoder).pack(one_by_one)
        return encoder

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        """Release the memory that a part used."""
        gc.collect()
        if not self.is_dry:
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any], *, least_s: float = 0.6) -> float:
        """Return the mean seconds per call over many calls in a row, without waiting after each one."""
        for _ in range(2):
            work()
        self.synchronize()
        count, start = 0, time.perf_counter()
        while count < 5 or time.perf_counter() - start < (0.05 if self.is_dry else least_s):
            work()
            count += 1
            if count % _QUEUED == 0:
                self.synchronize()
        self.synchronize()
        return (time.perf_counter() - start) / count


def torch_engine(encoder: Encoder) -> TorchEngine:
    """Return the encoder's engine, which is always the torch engine here."""
    engine = encoder._engine
    assert isinstance(engine, TorchEngine)
    return engine


def random_inputs(lengths: Sequence[int] | npt.NDArray[Any], *, seed: int = 0) -> TokenizedInputs:
    """Return inputs of the given token lengths: random ids between [CLS] and [SEP]."""
    counts = np.asarray(lengths, np.int32)
    ids = np.random.default_rng(seed).integers(1000, 30_000, int(counts.sum())).astype(np.int32)
    ends = np.cumsum(counts)
    ids[ends - counts] = 2
    ids[ends - 1] = 3
    return TokenizedInputs(ids, counts)


@dataclass(frozen=True, slots=True)
class Distance:
    """The difference between actual and expected vectors.

    Attributes:
        relative: the largest distance, relative to the length of the expected vector.
        cosine: the lowest cosine similarity.
        is_own: whether each vector is closest to its own expected vector. If not, vectors were swapped.
    """

    relative: float
    cosine: float
    is_own: bool


def distance(actual: Vectors, expected: Vectors) -> Distance:
    """Compare vectors row by row.

    Rows whose expected vector is zero, such as inputs without known words, only count towards `relative`.
    """
    lengths = np.linalg.norm(expected, axis=1)
    relative = np.linalg.norm(actual - expected, axis=1) / np.maximum(lengths, 1e-9)
    rows = np.flatnonzero(lengths > 1e-9)
    ours, theirs = (
        vectors[rows] / np.maximum(np.linalg.norm(vectors[rows], axis=1, keepdims=True), 1e-9)
        for vectors in (actual, expected)
    )
    cosines = ours @ theirs.T
    return Distance(
        relative=float(relative.max()),
        cosine=float(cosines.diagonal().min()),
        # Equal texts have equal vectors, so a tie for the closest vector is allowed.
        is_own=bool((cosines.diagonal() >= cosines.max(axis=1) - 1e-6).all()),
    )
