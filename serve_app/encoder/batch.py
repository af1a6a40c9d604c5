"""One batch: joins the inputs of calls, cuts them into forward passes and collects the results.

This module only uses NumPy buffers. Of the model, it only needs the vector width, and whether the
engine pads inputs.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.encoder.padding import padded_batches
from serve_app.messages import (
    EmbedCall,
    EmbedResult,
    Failure,
    FailureCode,
    TokenizedInputs,
    Vectors,
)
from serve_app.token_budget import split_by_budget

Indices = npt.NDArray[np.intp]

NO_INPUTS = TokenizedInputs(np.zeros(0, np.int32), np.zeros(0, np.int32))


# Token ids of several inputs.
Inputs = EmbedCall | TokenizedInputs


class Batch:
    """The inputs of several calls in one buffer, and the arrays that receive their results.

    Args:
        calls: the inputs of each call.
        dimensions: number of components in a vector.
        pads: whether the engine pads the inputs of a forward pass to the length of the longest one.

    Attributes:
        ids: the ids of all inputs, int32 [tokens].
        lengths: number of tokens in each input, int32 [inputs].
        starts: offset of each input in `ids`, [inputs].
        prompt_lengths: number of ids at the start of each input that belong to its prompt, [inputs].
    """

    def __init__(self, calls: Sequence[Inputs], *, dimensions: int, pads: bool = True) -> None:
        calls = calls or [NO_INPUTS]
        self.ids = np.concatenate([call.ids for call in calls])
        self.lengths = np.concatenate([call.lengths for call in calls])
        self.starts = np.cumsum(self.lengths, dtype=np.intp) - self.lengths
        self.prompt_lengths = np.concatenate([call.prompt_lengths for call in calls])
        self._pads = pads
        self._vectors = np.zeros((len(self.lengths), dimensions), np.float32)
        self._padded_tokens = np.zeros(len(self.lengths), np.int64)
        self._failures: dict[int, FailureCode] = {}

    def unreadable(self, *, vocabulary_size: int, may_be_empty: bool) -> npt.NDArray[np.bool_]:
        """Return a mask of the inputs that the model cannot read, [inputs].

        An input is unreadable if one of its ids is outside the embedding table, or if it is empty
        and the model needs at least one token.

        Args:
            vocabulary_size: number of rows in the embedding table. On a GPU, an id beyond the table
                does not raise an error that can be handled: it breaks the device for the whole
                process.
            may_be_empty: whether the model has a vector for an empty input. A sum over no tokens is
                zero; attention over no tokens is undefined.
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
            max_batch_tokens: maximum number of tokens, padding included, in one forward pass.
            pass_tokens: fixed cost of a forward pass, as the number of tokens that take the same
                time.
            mixes_prompts: whether inputs with prompts of different lengths may be in the same
                forward pass.

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
        """Return the number of tokens computed for each input of a forward pass, [inputs]."""
        lengths = self.lengths[indices].astype(np.int64)
        return np.full_like(lengths, lengths.max()) if self._pads else lengths

    def keep(self, indices: Indices, vectors: Vectors, finite: npt.NDArray[np.bool_]) -> None:
        """Store the vectors of a forward pass. Inputs whose vector is not finite fail."""
        self._vectors[indices[finite]] = vectors[finite]
        self._padded_tokens[indices] = self._computed(indices)
        self.fail(indices[~finite], "non_finite_embedding")

    def fail(self, indices: Indices, code: FailureCode) -> None:
        """Record that these inputs have no vector."""
        self._failures.update((int(index), code) for index in indices)

    def result(self, *, inference_s: float) -> EmbedResult:
        """Return the results in input order. The vectors of failed inputs are zero.

        Args:
            inference_s: the time that the batch took, in seconds.
        """
        failures = tuple(Failure(index, code) for index, code in sorted(self._failures.items()))
        return EmbedResult(
            self._vectors, failures, self._padded_tokens, inference_s, len(self._vectors)
        )
