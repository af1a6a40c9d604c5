"""One batch: the inputs of several chunks joined, the forward passes they make, and what became of each.

Buffers in, buffers out. Knows nothing of the model but the few facts that its constructor is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.encoder.padding import padded_batches
from serve_app.messages import Failure, FailureCode, TokenizedInputs, Vectors
from serve_app.token_budget import split_by_budget

Indices = npt.NDArray[np.intp]

NO_INPUTS = TokenizedInputs(np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the model made of some inputs.

    Attributes:
        vectors: before any trailing Normalize, in the order given, float32 [inputs, dimensions]; rows of failed inputs
            are zeros.
        failures: the inputs without a vector, in order.
        padded_tokens: tokens that were computed for each input, int64 [inputs]: the longest length in its forward pass
            where shorter inputs are filled up, else its own; 0 for an input that was in none.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    padded_tokens: npt.NDArray[np.int64]


class Batch:
    """The inputs of several chunks as one buffer, and the places where their results go.

    Args:
        chunks: the inputs of each chunk.
        dimensions: components of a vector.
        pads: inputs of a forward pass are filled up to the longest.

    Attributes:
        ids: all ids, int32.
        lengths: tokens of each input, int32 [inputs].
        starts: where in `ids` each input starts, [inputs].
        prompt_lengths: each input's leading ids that are the prompt's, [inputs].
    """

    def __init__(
        self, chunks: Sequence[TokenizedInputs], *, dimensions: int, pads: bool = True
    ) -> None:
        chunks = chunks or [NO_INPUTS]
        self.ids = np.concatenate([chunk.ids for chunk in chunks])
        self.lengths = np.concatenate([chunk.lengths for chunk in chunks])
        self.starts = np.cumsum(self.lengths, dtype=np.intp) - self.lengths
        self.prompt_lengths = np.repeat(
            [chunk.prompt_length for chunk in chunks], [len(chunk) for chunk in chunks]
        )
        self._pads = pads
        self._vectors = np.zeros((len(self.lengths), dimensions), np.float32)
        self._padded_tokens = np.zeros(len(self.lengths), np.int64)
        self._failures: dict[int, FailureCode] = {}

    def unreadable(self, *, vocabulary_size: int, may_be_empty: bool) -> npt.NDArray[np.bool_]:
        """Return which inputs the model cannot read: ids that it has no row for, or no tokens where it needs some.

        Args:
            vocabulary_size: rows of the model's embedding table. On a GPU an id beyond it does not raise but breaks the
                device for the whole process.
            may_be_empty: an input without tokens has a vector: a sum of none is zero, attention to none is undefined.
        """
        owners = np.repeat(np.arange(len(self.lengths)), self.lengths)
        unreadable = np.zeros(len(self.lengths), np.bool_)
        unreadable[owners[(self.ids < 0) | (self.ids >= vocabulary_size)]] = True
        return unreadable if may_be_empty else unreadable | (self.lengths == 0)

    def passes(
        self,
        readable: npt.NDArray[np.bool_],
        *,
        max_batch_tokens: int,
        pass_tokens: float,
        mixes_prompts: bool,
    ) -> list[Indices]:
        """Cut the readable inputs into forward passes within the token budget, those with most to compute first.

        Args:
            readable: which inputs, [inputs].
            max_batch_tokens: most tokens in a pass, padding included.
            pass_tokens: what a pass costs beside its tokens, in tokens.
            mixes_prompts: inputs whose prompts differ in length may share a pass.

        Returns:
            The indices of each pass's inputs; longest first, where they are filled up.
        """
        passes: list[Indices] = []
        kinds = np.zeros_like(self.prompt_lengths) if mixes_prompts else self.prompt_lengths
        for kind in np.unique(kinds[readable]):
            members = np.flatnonzero(readable & (kinds == kind))
            lengths = self.lengths[members]
            if self._pads:
                batches = padded_batches(
                    lengths, max_batch_tokens=max_batch_tokens, pass_tokens=pass_tokens
                )
                passes += [members[chosen] for chosen in batches]
            else:
                runs = split_by_budget(lengths, budget=max_batch_tokens)
                passes += [members[run] for run in runs]
        return sorted(passes, key=lambda indices: self._computed(indices).sum(), reverse=True)

    def _computed(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Return the tokens that are computed for each input of a pass, [inputs]."""
        lengths = self.lengths[indices].astype(np.int64)
        return np.full_like(lengths, lengths.max()) if self._pads else lengths

    def keep(self, indices: Indices, vectors: Vectors, finite: npt.NDArray[np.bool_]) -> None:
        """Put the vectors of a pass in their places; those that are not finite fail."""
        self._vectors[indices[finite]] = vectors[finite]
        self._padded_tokens[indices] = self._computed(indices)
        self.fail(indices[~finite], "non_finite_embedding")

    def fail(self, indices: Indices, code: FailureCode) -> None:
        """Note that these inputs have no vector."""
        self._failures.update((int(index), code) for index in indices)

    def encoded(self) -> Encoded:
        """Return the results, in the order of the inputs."""
        failures = tuple(Failure(index, code) for index, code in sorted(self._failures.items()))
        return Encoded(self._vectors, failures, self._padded_tokens)
