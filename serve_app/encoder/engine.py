"""What computes a forward pass: the seam between the encoder and the libraries that do the arithmetic.

Arrays in, arrays out. Knows neither torch nor OpenVINO.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve_app.messages import Vectors

# CPU: with MiniLM on two cores, 2048 is the best of 256 to 8192 for texts of 12, 32 and 128 tokens, or within the
# noise of it; for mixed lengths 4096 gives a sixth less, for more padding.
DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# What a pass costs beside its tokens, until it is measured: 1.2 ms of 0.12 ms for a token, with MiniLM on two cores.
DEFAULT_PASS_TOKENS = 10.0

Finite = npt.NDArray[np.bool_]


class EncoderBrokenError(Exception):
    """The device is in a state that only a new process gets out of."""


@dataclass(frozen=True, slots=True)
class Features:
    """What one forward pass reads.

    Attributes:
        ids: token ids, filled up on the right, int64 [inputs, longest length].
        mask: 1 for a token, 0 for padding, of the same shape and type.
        prompt_length: leading ids that are the prompt's, of every input alike where the pooling leaves them out.
    """

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    prompt_length: int


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
        pad_id: what fills up shorter inputs.
        vocabulary_size: ids that the model has a row for.
        reads_empty: an input without tokens has a vector.
        passes_at_once: how many passes may be started before the first is waited for.
    """

    name: str
    device: str
    pad_id: int
    vocabulary_size: int
    reads_empty: bool
    passes_at_once: int

    def start(self, features: Features) -> Pass:
        """Start a forward pass.

        Raises:
            EncoderBrokenError: the device failed, and every later pass would too.
            Exception: this pass failed, whatever the reason.
        """

    def recover(self) -> None:
        """Give back what a failed pass left, once its error is forgotten."""


def default_batch_tokens(device: str) -> int:
    """Return the token budget of a device that has none set; `cuda:1` counts as `cuda`."""
    return DEFAULT_BATCH_TOKENS.get(device.partition(":")[0], DEFAULT_BATCH_TOKENS["cpu"])
