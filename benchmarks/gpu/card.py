"""The card that is measured, or the CPU that stands in for it, and what all parts need: loading, timing, inputs."""

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
# Launches that may be queued before a timed loop waits for the device.
_QUEUED = 20


def say(*words: object) -> None:
    """Print a line with the seconds since the start."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s ", *words, flush=True)


@dataclass(frozen=True, slots=True)
class Card:
    """Where the encoder runs.

    Attributes:
        is_dry: on a CPU, with tiny models.
        dtype: the half precision that speed is measured in.
        sizes: names of the models whose speed is measured.
        out: the folder for results.
        ends: when the time is up, by `time.monotonic`.
    """

    is_dry: bool
    dtype: str
    sizes: Sequence[str]
    out: Path
    ends: float

    @property
    def device(self) -> str:
        """The device by torch's name."""
        return "cpu" if self.is_dry else "cuda"

    @property
    def budget(self) -> int:
        """The token budget of a batch."""
        return default_batch_tokens(self.device)

    @staticmethod
    def all_sizes() -> list[str]:
        """Return the names of the models that can be measured."""
        return list(SIZES)

    @property
    def left_s(self) -> float:
        """The seconds that are left."""
        return self.ends - time.monotonic()

    @property
    def precisions(self) -> tuple[str, ...]:
        """The types whose vectors are compared with float32 on a CPU."""
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
        """Load a model as a replica would; on a CPU with a stand-in for the attention of packed inputs."""
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
        """Wait until the device has done all that it was told."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        """Give the memory of a part back."""
        gc.collect()
        if not self.is_dry:
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any], *, least_s: float = 0.6) -> float:
        """Return the seconds of one call of many in a row: what a pipeline reaches."""
        for _ in range(2):
            work()
        self.synchronize()
        count, began = 0, time.perf_counter()
        while count < 5 or time.perf_counter() - began < (0.05 if self.is_dry else least_s):
            work()
            count += 1
            if count % _QUEUED == 0:
                self.synchronize()
        self.synchronize()
        return (time.perf_counter() - began) / count


def torch_engine(encoder: Encoder) -> TorchEngine:
    """Return the engine of an encoder, which is torch's on a GPU."""
    engine = encoder._engine
    assert isinstance(engine, TorchEngine)
    return engine


def random_inputs(lengths: Sequence[int] | npt.NDArray[Any], *, seed: int = 0) -> TokenizedInputs:
    """Return inputs of these lengths, of random words between a [CLS] and a [SEP]."""
    counts = np.asarray(lengths, np.int32)
    ids = np.random.default_rng(seed).integers(1000, 30_000, int(counts.sum())).astype(np.int32)
    ends = np.cumsum(counts)
    ids[ends - counts] = 2
    ids[ends - 1] = 3
    return TokenizedInputs(ids, counts)


@dataclass(frozen=True, slots=True)
class Distance:
    """How far vectors are from those that were expected.

    Attributes:
        relative: the largest distance, as a part of the expected vector's length.
        cosine: the least.
        is_own: each vector is nearer to its own expected one than to any other, so that none were swapped.
    """

    relative: float
    cosine: float
    is_own: bool


def distance(found: Vectors, expected: Vectors) -> Distance:
    """Compare vectors row by row; rows of zeros, as of an input without known words, count by distance alone."""
    lengths = np.linalg.norm(expected, axis=1)
    apart = np.linalg.norm(found - expected, axis=1) / np.maximum(lengths, 1e-9)
    rows = np.flatnonzero(lengths > 1e-9)
    ours, theirs = (
        vectors[rows] / np.maximum(np.linalg.norm(vectors[rows], axis=1, keepdims=True), 1e-9)
        for vectors in (found, expected)
    )
    cosines = ours @ theirs.T
    return Distance(
        relative=float(apart.max()),
        cosine=float(cosines.diagonal().min()),
        # Equal texts have equal vectors: the own one has to be among the nearest.
        is_own=bool((cosines.diagonal() >= cosines.max(axis=1) - 1e-6).all()),
    )
