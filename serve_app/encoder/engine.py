"""The interface between the encoder and the library that runs the model.

An `Engine` takes the token ids of one forward pass and returns its vectors, all as NumPy arrays.
Imports neither torch nor OpenVINO.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve_app.encoder.padding import pad
from serve_app.messages import Vectors

# Default token budget by device. On a CPU (MiniLM, two cores), 2048 is the best of 256 to 8192 for
# texts of 12, 32 and 128 tokens, or within noise of the best. For mixed lengths, 4096 has a
# sixth less throughput, because it pads more.
DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# Fixed cost of a forward pass in tokens, until it is measured. MiniLM on two cores: 1.2 ms for a
# forward pass, 0.12 ms for a token.
DEFAULT_PASS_TOKENS = 10.0

# One forward pass runs and one is ready to run, so that no stream idles while there is work.
PASSES_PER_STREAM = 2
# A stream's share of a full budget is at least this many tokens. In smaller forward passes, the
# fixed cost begins to show.
_TOKENS_PER_STREAM = 256

Finite = npt.NDArray[np.bool_]


class EncoderBrokenError(Exception):
    """The device is unusable until the process restarts."""


@dataclass(frozen=True, slots=True)
class Features:
    """The inputs of one forward pass.

    Attributes:
        ids: token ids of all inputs, concatenated, int64 [tokens].
        lengths: tokens of each input, int64 [inputs].
        prompt_length: number of leading ids that belong to the prompt. It holds for every input if
            the pooling excludes the prompt, and for the first input otherwise.
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

        The next forward pass may reuse the memory of the vectors: read or copy them before waiting
        for it.

        Returns:
            The vectors before any trailing Normalize, float32 [inputs, dimensions], and the mask,
            bool [inputs].

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
        pads: the inputs of a forward pass are padded to the longest, and padding is computed.
        vocabulary_size: rows of the embedding table.
        reads_empty: an input without tokens has a vector.
        passes_at_once: most forward passes in flight when each has the whole device.
        streams: forward passes that run in parallel, each on its share of the processor. Up to
            `PASSES_PER_STREAM` for each stream may be in flight.
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
            alone: run on the whole device; if False, run in a stream, in parallel with others.

        Raises:
            EncoderBrokenError: the device failed. Every later forward pass would fail too.
            Exception: this forward pass failed, for whatever reason.
        """

    def recover(self) -> None:
        """Release the resources of a failed forward pass. Call it after handling the error."""


def streams_for(threads: int, max_batch_tokens: int) -> int:
    """Return the number of streams for a processor's threads.

    A stream has one thread, or several if a full token budget is too small to be split that often.

    Threads that share a forward pass wait for the slowest of them after every operator, hundreds of
    times in a forward pass, and other load on the machine always slows one of them. Streams wait
    for each other only at the end of a batch.
    """
    most_streams = max(min(threads, max_batch_tokens // _TOKENS_PER_STREAM), 1)
    threads_per_stream = -(-threads // most_streams)  # rounded up, to leave few threads unused
    return threads // threads_per_stream


def default_batch_tokens(device: str) -> int:
    """Return the default token budget of a device; `cuda:1` counts as `cuda`."""
    return DEFAULT_BATCH_TOKENS.get(device.partition(":")[0], DEFAULT_BATCH_TOKENS["cpu"])
