"""The messages between the ingress and a model's replicas.

Messages are frozen and made of buffers: token ids travel as one int32 array and vectors as one float32 array, never as
lists of numbers. This module knows nothing of tensors, JSON or Ray.
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
    """The token ids of several inputs, concatenated in one buffer.

    Attributes:
        ids: the ids of all inputs, with special tokens and prompt, int32 [sum(lengths)].
        lengths: the number of ids in each input, int32 [inputs].
        prompt_length: the number of leading ids of each input that pooling skips with `include_prompt: false`, counted
            as in `sentence_transformers.models.Transformer`; 0 without a prompt.
    """

    ids: TokenIds
    lengths: TokenIds
    prompt_length: int = 0

    @property
    def tokens(self) -> int:
        """The total number of tokens, without padding."""
        return len(self.ids)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class EmbedChunk:
    """Inputs of one request that go to a replica together: at most half a token budget, or one longer input.

    Attributes:
        inputs: the inputs to embed.
        request_id: the id of the request.
        first_input: the position of the chunk's first input in the request.
        is_retry: a replica died while it held this chunk, which may therefore be a poison pill.
    """

    inputs: TokenizedInputs
    request_id: str
    first_input: int = 0
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """One input that has no vector. `index` is its position in the chunk."""

    index: int
    code: FailureCode


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The result of one chunk.

    Attributes:
        vectors: the model's output before any trailing Normalize module, float32 [inputs, dimensions]. Rows of failed
            inputs are meaningless.
        failures: the inputs without a vector, in order.
        inference_s: the duration of the batch that contained this chunk, in seconds.
        batch_inputs: the number of inputs in that batch.
        padded_tokens: the tokens computed for this chunk, padding included.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    inference_s: float
    batch_inputs: int
    padded_tokens: int


@dataclass(frozen=True, slots=True)
class ReplicaRejected:
    """A replica's answer to a call that it rejects for now. The caller sends it again, to this replica or another.

    A replica rejects calls when it is about to be replaced. It also rejects a retry while it holds another one: if it
    died with both, either could be the poison pill.
    """


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The state of one replica. Ingress replicas poll it, also to answer a metrics scrape.

    Attributes:
        replica: the replica's id, unique in the cluster.
        queued_chunks: the number of chunks that wait for the model.
        queued_tokens: the number of tokens in those chunks.
        busy_seconds: the seconds the model has computed since the replica started.
        memory_bytes: the resident memory of the replica's process.
        max_batch_tokens: the replica's current token budget.
        max_queued_tokens: the replica's current share of the model's limit on queued tokens.
        others_waiting: the number of ingress replicas with pending work, not counting the caller.
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
    """The vectors of a whole request, joined from its chunks.

    Attributes:
        vectors: as in `EmbedResult`, float32 [inputs, dimensions].
        failures: the inputs without a vector; `index` is the position in the request.
        queue_s: the seconds during which no chunk of the request was computed, including transfer to and from the
            replica.
        inference_s: the seconds during which at least one chunk of the request was in a running batch.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class EmbedResponse:
    """The response to one request, as Python callers receive it.

    Attributes:
        embeddings: one vector per input, in input order, float32 [inputs, dimensions].
        model: the served model's name.
        prompt_tokens: the number of tokens the model read: after truncation, with special and prompt tokens, without
            padding.
        truncated_inputs: the number of truncated inputs.
        tokenization_s: the duration of tokenization, in seconds.
        queue_s: as in `ModelAnswer`.
        inference_s: as in `ModelAnswer`.
    """

    embeddings: Vectors
    model: str
    prompt_tokens: int
    truncated_inputs: int
    tokenization_s: float
    queue_s: float
    inference_s: float
