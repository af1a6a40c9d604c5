"""The interface between the encoder and the library that runs the model.

An `Engine` takes the token ids of one forward pass and returns its vectors, all as NumPy arrays. On
a CPU, an engine can compute several forward passes side by side, each on its part of the cores. Such
a part of the cores is called a stream. This module does not import torch or OpenVINO.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve_app.encoder.padding import pad
from serve_app.messages import Vectors

# Default token budget by device. On a CPU (MiniLM, two cores), 2048 has the highest throughput of the
# budgets from 256 to 8192 for texts of 12, 32 and 128 tokens, or is within noise of the highest. For
# texts of mixed lengths, 4096 has a sixth less throughput, because it pads more.
DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# Fixed cost of a forward pass until it is measured, as the number of tokens that take the same time.
# With MiniLM on two cores, a forward pass costs 1.2 ms, and a token 0.12 ms.
DEFAULT_PASS_TOKENS = 10.0

# In each stream, one forward pass runs and one is ready to run, so that no stream idles while there
# is work.
PASSES_PER_STREAM = 2
# If a full token budget is divided among the streams, each stream gets at least this many tokens. In
# smaller forward passes, the fixed cost becomes noticeable.
_TOKENS_PER_STREAM = 256

Finite = npt.NDArray[np.bool_]


class EncoderBrokenError(Exception):
    """The device is unusable until the process restarts."""


@dataclass(frozen=True, slots=True)
class Features:
    """The inputs of one forward pass.

    Attributes:
        ids: token ids of all inputs, concatenated, int64 [tokens].
        lengths: number of tokens in each input, int64 [inputs].
        prompt_length: number of ids at the start of an input that belong to the prompt. If the
            pooling excludes the prompt, the number is the same for all inputs. Otherwise it is that
            of the first input.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_length: int

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Offset of each input in `ids`, int64 [inputs]."""
        return np.cumsum(self.lengths) - self.lengths

    def padded(self, pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the ids, padded on the right, and their mask; both int64 [inputs, longest]."""
        return pad(self.ids, self.starts, self.lengths, pad_id=pad_id)


class Pass(Protocol):
    """A forward pass in flight."""

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors and a mask of the finite ones.

        The next forward pass may overwrite these vectors. Read or copy them before waiting for that
        pass.

        Returns:
            The vectors, float32 [inputs, dimensions], and the mask, bool [inputs]. The vectors are
            not normalized, even if the model ends with a Normalize module.

        Raises:
            EncoderBrokenError: the device failed. Every later forward pass would fail too.
            Exception: this forward pass failed, for whatever reason.
        """


@dataclass(frozen=True, slots=True)
class Computed:
    """A forward pass that had finished when `start` returned."""

    vectors: Vectors
    finite: Finite

    def result(self) -> tuple[Vectors, Finite]:
        """Return the vectors and a mask of the finite ones."""
        return self.vectors, self.finite


class Engine(Protocol):
    """A model on a device, used by one thread at a time.

    Attributes:
        name: `torch` or `openvino`.
        device: a torch device name, such as `cpu`, `cuda` or `cuda:1`.
        pads: whether the inputs of a forward pass are padded to the length of the longest one. If
            so, the device also computes the padding.
        vocabulary_size: number of rows in the embedding table.
        reads_empty: whether an input without tokens has a vector.
        passes_at_once: maximum number of forward passes in flight when each has the whole device.
        streams: number of streams. Each stream may have up to `PASSES_PER_STREAM` forward passes in
            flight.
    """

    name: str
    device: str
    pads: bool
    vocabulary_size: int
    reads_empty: bool
    passes_at_once: int
    streams: int

    def start(self, features: Features, *, alone: bool) -> Pass:
        """Start a forward pass.

        Args:
            features: the inputs.
            alone: whether the forward pass gets the whole device. If False, it runs in a stream, in
                parallel with the other streams.

        Raises:
            EncoderBrokenError: the device failed. Every later forward pass would fail too.
            Exception: this forward pass failed, for whatever reason.
        """

    def recover(self) -> None:
        """Release the resources of a failed forward pass. Call this after handling the error."""


def streams_for(threads: int, max_batch_tokens: int) -> int:
    """Return the number of streams for a number of CPU threads.

    A stream has one thread. If a full token budget is too small for that many streams, a stream has
    several threads.

    Many streams are faster than many threads in one forward pass. Threads that compute the same
    forward pass wait for the slowest of them after every operator, hundreds of times in a forward
    pass, and other load on the machine always slows one of them down. Streams wait for each other
    only at the end of a batch.
    """
    most_streams = max(min(threads, max_batch_tokens // _TOKENS_PER_STREAM), 1)
    threads_per_stream = -(-threads // most_streams)  # rounded up, to leave few threads unused
    return threads // threads_per_stream


def default_batch_tokens(device: str) -> int:
    """Return the default token budget of a device; `cuda:1` counts as `cuda`."""
    return DEFAULT_BATCH_TOKENS.get(device.partition(":")[0], DEFAULT_BATCH_TOKENS["cpu"])
