"""What crosses the handle between the ingress and a model's replica.

Frozen, small, and made of buffers: token ids travel as one int32 array and vectors as one float32 array, never as lists
of numbers. Knows nothing of tensors, JSON or Ray.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
Vectors = npt.NDArray[np.float32]

FailureCode = Literal["inference_failed", "non_finite_embedding"]


@dataclass(frozen=True, slots=True)
class TokenizedInputs:
    """The token ids of some inputs, one after the other in one buffer.

    Attributes:
        ids: all ids, special tokens and prompt included, int32 [sum(lengths)].
        lengths: ids of each input, int32 [inputs].
        prompt_length: how many leading ids of every input belong to the prompt, as
            `sentence_transformers.models.Transformer` counts them for poolings with `include_prompt: false`; 0 without
            a prompt.
    """

    ids: TokenIds
    lengths: TokenIds
    prompt_length: int = 0

    @property
    def tokens(self) -> int:
        """All tokens, without padding."""
        return len(self.ids)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class EmbedChunk:
    """Inputs of one request that go to a replica together, at most half a token budget of them.

    Attributes:
        inputs: what is embedded.
        request_id: the request's.
        first_input: which input of the request is the first of these.
        is_retry: whether a replica died that had it, so that it may be what the replica died of.
    """

    inputs: TokenizedInputs
    request_id: str
    first_input: int = 0
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """One input that has no vector: `index` counts within its chunk."""

    index: int
    code: FailureCode


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """A chunk's answer.

    Attributes:
        vectors: what the model's modules give before any trailing Normalize, float32 [inputs, dimensions]; the rows of
            failed inputs are not meaningful.
        failures: the inputs without a vector, in order.
        inference_s: seconds that the batch which held the chunk took.
        batch_inputs: inputs in the batch that held this chunk.
        padded_tokens: this chunk's share of the tokens that the model computed, padding included.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    inference_s: float
    batch_inputs: int
    padded_tokens: int


@dataclass(frozen=True, slots=True)
class ReplicaRejected:
    """A call that a replica does not take now, though it or another soon may.

    It is about to be replaced; or the call is a suspect and there is one inside already. Two that die together would
    both look guilty.
    """


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What only a replica knows of itself, asked for at a scrape and by those who send to it.

    Attributes:
        replica: the replica's id within the cluster.
        queued_chunks: chunks that wait for the model.
        queued_tokens: their tokens.
        busy_seconds: seconds the model has computed since the replica started.
        memory_bytes: resident memory of the replica's process.
        max_batch_tokens: its token budget at the moment.
        max_queued_tokens: what it adds to the most tokens that may wait, at the moment.
        others_waiting: in how many ingress replicas something waits, besides the one that asks.
    """

    replica: str
    queued_chunks: int
    queued_tokens: int
    busy_seconds: float
    memory_bytes: int
    max_batch_tokens: int
    max_queued_tokens: int
    others_waiting: int


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """All of a request's vectors, put together from its chunks.

    Attributes:
        vectors: as in `EmbedResult`, float32 [inputs, dimensions].
        failures: the inputs without a vector; `index` counts within the request.
        queue_s: seconds in which none of its chunks was being computed, the ways to the replica and back included.
        inference_s: seconds in which the model computed a batch that held a chunk of it.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class EmbedResponse:
    """What a caller from Python gets.

    Attributes:
        embeddings: float32 [inputs, dimensions], in input order.
        model: the served model's name.
        prompt_tokens: tokens that the model read: after truncation, with special and prompt tokens, without padding.
        truncated_inputs: how many inputs were cut.
        tokenization_s: seconds spent on turning text into ids.
        queue_s: seconds in which it waited for the model.
        inference_s: seconds in which the model computed a batch that held some of it.
    """

    embeddings: Vectors
    model: str
    prompt_tokens: int
    truncated_inputs: int
    tokenization_s: float
    queue_s: float
    inference_s: float
