"""The messages between the ingress and a model's replicas.

Messages are frozen and made of buffers: token ids travel as one int32 array and vectors as one float32 array, never as
lists of numbers. This module does not depend on torch, JSON or Ray.
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
        prompt_length: the number of ids at the start of each input that belong to the prompt; 0 without a prompt. A
            Pooling with `include_prompt: false` skips these ids. They are counted as in
            `sentence_transformers.models.Transformer`.
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
    """Inputs of one request that are sent to a replica together.

    A chunk has at most half a token budget of tokens. An input that is longer is a chunk of its own.

    Attributes:
        inputs: the inputs to embed.
        request_id: the id of the request.
        first_input: the position of the chunk's first input in the request.
        is_retry: whether a replica died while it held this chunk. If so, the chunk may be a poison pill: a chunk that
            kills every replica that computes it.
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
        vectors: the model's vectors, not yet normalized, float32 [inputs, dimensions]. If the model ends with a
            Normalize module, the replica leaves that module out, because the ingress normalizes vectors. Rows of failed
            inputs are meaningless.
        failures: the inputs without a vector, in order.
        inference_s: the inference time of the batch that contained this chunk, in seconds.
        batch_inputs: the number of inputs in that batch.
        padded_tokens: the number of tokens computed for this chunk, padding included.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    inference_s: float
    batch_inputs: int
    padded_tokens: int


@dataclass(frozen=True, slots=True)
class ReplicaRejected:
    """A replica's answer to a call that it cannot take at the moment. The caller sends the call again, to any replica.

    A replica rejects all calls when it is about to be replaced. It also rejects a retry while it holds another retry:
    if the replica died with both retries, either of them could be the poison pill.
    """


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The state of one model replica.

    Ingress replicas ask for it while they have pending tokens, and whenever they answer a metrics scrape.

    Attributes:
        replica: the replica's id, unique in the cluster.
        queued_calls: the calls that wait for the model; each carries one or more chunks.
        queued_tokens: the number of tokens in those calls.
        busy_seconds: the total seconds that the model's thread has been busy since the replica started. This includes
            the time to load the model.
        memory_bytes: the resident memory of the replica's process, in bytes.
        max_batch_tokens: the replica's current token budget, in tokens.
        max_queued_tokens: the replica's current `max_queued_tokens` setting. The limit of the model is the sum over its
            replicas.
        others_waiting: the number of ingress replicas with pending tokens, not counting the caller.
    """

    replica: str
    queued_calls: int
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
        failures: the inputs without a vector. The `index` of each is its position in the request.
        queue_s: the seconds during which no chunk of the request was being computed: time in queues, and transfer to
            and from the replica.
        inference_s: the seconds during which at least one chunk of the request was being computed.
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
        prompt_tokens: the number of tokens that the model read. Special tokens and the prompt's tokens count; truncated
            tokens and padding do not.
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
