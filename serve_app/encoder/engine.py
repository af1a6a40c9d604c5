"""What computes a forward pass: the seam between the encoder and the libraries that do the arithmetic.

Arrays in, arrays out. Knows neither torch nor OpenVINO.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve_app.encoder.padding import pad
from serve_app.messages import Vectors

# CPU: with MiniLM on two cores, 2048 is the best of 256 to 8192 for texts of 12, 32 and 128 tokens, or within the
# noise of it; for mixed lengths 4096 gives a sixth less, for more padding.
DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# What a pass costs beside its tokens, until it is measured: 1.2 ms of 0.12 ms for a token, with MiniLM on two cores.
DEFAULT_PASS_TOKENS = 10.0

# One computes and one is ready, so that no stream waits while there is work.
PASSES_PER_STREAM = 2
# Least tokens of a full budget for a stream: below, a pass as such begins to cost.
_TOKENS_PER_STREAM = 256

Finite = npt.NDArray[np.bool_]


class EncoderBrokenError(Exception):
    """The device is in a state that only a new process gets out of."""


@dataclass(frozen=True, slots=True)
class Features:
    """What one forward pass reads.

    Attributes:
        ids: token ids of all inputs, one after the other, int64.
        lengths: tokens of each input, int64 [inputs].
        prompt_length: leading ids that are the prompt's, of every input alike where the pooling leaves them out.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_length: int

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where in `ids` each input starts, [inputs]."""
        return np.cumsum(self.lengths) - self.lengths

    def padded(self, pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the ids under each other, filled up on the right, and the mask; both int64 [inputs, longest]."""
        return pad(self.ids, self.starts, self.lengths, pad_id=pad_id)


class Pass(Protocol):
    """A forward pass that was started."""

    def result(self) -> tuple[Vectors, Finite]:
        """Wait for the vectors, float32 [inputs, dimensions], and which of them are finite.

        The vectors are those before any trailing Normalize; the next pass may write over them once it was waited for.

        Raises:
            EncoderBrokenError: the device failed, and every later pass would too.
            Exception: this pass failed, whatever the reason.
        """


@dataclass(frozen=True, slots=True)
class Computed:
    """A pass that was over as soon as it was started."""

    vectors: Vectors
    finite: Finite

    def result(self) -> tuple[Vectors, Finite]:
        """Return the vectors, and which of them are finite."""
        return self.vectors, self.finite


class Engine(Protocol):
    """A model on a device, used by one thread at a time.

    Attributes:
        name: `torch` or `openvino`.
        device: `cpu`, `cuda`, `cuda:1`.
        pads: inputs of a pass are filled up to the longest, and what they are filled up with is computed.
        vocabulary_size: ids that the model has a row for.
        reads_empty: an input without tokens has a vector.
        passes_at_once: how many passes that each have the whole device may be started before the first is waited for.
        streams: how many passes may be computed side by side, each on its part of the processor. Of those
            `PASSES_PER_STREAM` for each stream may be started before the first is waited for.
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
            features: what it reads.
            alone: it has the whole device; else a stream of it, beside others.

        Raises:
            EncoderBrokenError: the device failed, and every later pass would too.
            Exception: this pass failed, whatever the reason.
        """

    def recover(self) -> None:
        """Give back what a failed pass left, once its error is forgotten."""


def streams_for(threads: int, max_batch_tokens: int) -> int:
    """Return how many streams a processor's threads make: one each, or several where a full budget is too small for that.

    Threads that compute one pass together wait for the last of them after every operator, hundreds of times in a pass,
    and whatever else runs on the machine makes one of them the last. Streams meet at the end of a batch only.
    """
    most = max(min(threads, max_batch_tokens // _TOKENS_PER_STREAM), 1)
    threads_each = -(-threads // most)  # rounded up, so that few threads are left over
    return threads // threads_each


def default_batch_tokens(device: str) -> int:
    """Return the token budget of a device that has none set; `cuda:1` counts as `cuda`."""
    return DEFAULT_BATCH_TOKENS.get(device.partition(":")[0], DEFAULT_BATCH_TOKENS["cpu"])
