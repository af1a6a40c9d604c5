"""One batch: joins the inputs of chunks, cuts them into forward passes and collects the results.

Works on NumPy buffers only. Knows the vector width and whether the engine pads, and nothing else
about the model.
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
    """The result of encoding a batch.

    Attributes:
        vectors: float32 [inputs, dimensions], in input order, before any trailing Normalize. The
            rows of failed inputs are zero.
        failures: the inputs without a vector, in input order.
        padded_tokens: tokens computed for each input, int64 [inputs]: the longest length in its
            forward pass if the engine pads, its own length if not, and 0 if it was never computed.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    padded_tokens: npt.NDArray[np.int64]


class Batch:
    """The inputs of several chunks in one buffer, and the arrays that receive their results.

    Args:
        chunks: the inputs of each chunk.
        dimensions: components of a vector.
        pads: the engine pads the inputs of a forward pass to the longest.

    Attributes:
        ids: the ids of all inputs, int32 [tokens].
        lengths: tokens of each input, int32 [inputs].
        starts: offset of each input in `ids`, [inputs].
        prompt_lengths: number of leading ids of each input that belong to its prompt, [inputs].
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
        """Return a mask of the inputs that the model cannot read, [inputs].

        An input is unreadable if one of its ids is outside the embedding table, or if it is empty
        and the model needs at least one token.

        Args:
            vocabulary_size: rows of the embedding table. On a GPU, an id beyond it does not raise:
                it breaks the device for the whole process.
            may_be_empty: the model has a vector for an empty input. A sum over no tokens is zero;
                attention over no tokens is undefined.
        """
        owners = np.repeat(np.arange(len(self.lengths)), self.lengths)
        unreadable = np.zeros(len(self.lengths), np.bool_)
        unreadable[owners[(self.ids < 0) | (self.ids >= vocabulary_size)]] = True
        if not may_be_empty:
            unreadable[self.lengths == 0] = True
        return unreadable

    def passes(
        self,
        readable: npt.NDArray[np.bool_],
        *,
        max_batch_tokens: int,
        pass_tokens: float,
        mixes_prompts: bool,
    ) -> list[Indices]:
        """Cut the readable inputs into forward passes within the token budget, largest first.

        Args:
            readable: mask of the inputs to include, [inputs].
            max_batch_tokens: token budget of a forward pass, padding included.
            pass_tokens: fixed cost of a forward pass, in tokens.
            mixes_prompts: inputs with prompts of different lengths may share a forward pass.

        Returns:
            The input indices of each forward pass, longest input first if the engine pads.
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
        """Return the tokens computed for each input of a forward pass, [inputs]."""
        lengths = self.lengths[indices].astype(np.int64)
        return np.full_like(lengths, lengths.max()) if self._pads else lengths

    def keep(self, indices: Indices, vectors: Vectors, finite: npt.NDArray[np.bool_]) -> None:
        """Store the vectors of a forward pass; inputs whose vector is not finite fail."""
        self._vectors[indices[finite]] = vectors[finite]
        self._padded_tokens[indices] = self._computed(indices)
        self.fail(indices[~finite], "non_finite_embedding")

    def fail(self, indices: Indices, code: FailureCode) -> None:
        """Record that these inputs have no vector."""
        self._failures.update((int(index), code) for index in indices)

    def encoded(self) -> Encoded:
        """Return the results in input order."""
        failures = tuple(Failure(index, code) for index, code in sorted(self._failures.items()))
        return Encoded(self._vectors, failures, self._padded_tokens)
