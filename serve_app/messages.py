"""The messages between the ingress and a model's replicas.

Messages are frozen and made of buffers: token ids travel as one int32 array and vectors as one float32 array, never as
lists of numbers. This module does not depend on torch, JSON or Ray.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

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
        truncated: the number of inputs that were truncated.
    """

    ids: TokenIds
    lengths: TokenIds
    prompt_length: int = 0
    truncated: int = 0

    @property
    def tokens(self) -> int:
        """The total number of tokens, without padding."""
        return len(self.ids)

    @property
    def prompt_lengths(self) -> TokenIds:
        """The `prompt_length` of each input, int32 [inputs]."""
        return np.full(len(self.lengths), self.prompt_length, np.int32)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """The inputs of one call to a replica. They can come from several requests.

    Attributes:
        ids: as in `TokenizedInputs`, int32 [sum(lengths)].
        lengths: as in `TokenizedInputs`, int32 [inputs].
        prompt_lengths: the `prompt_length` of each input, int32 [inputs].
        request_id: the id of the request that the first input belongs to, for logs.
        is_retry: whether a replica died while it held these inputs. If so, they may be a poison pill: inputs that kill
            every replica that computes them.
        caller: the id of the calling ingress replica.
        waiting_tokens: the number of tokens that wait in that ingress replica.
    """

    ids: TokenIds
    lengths: TokenIds
    prompt_lengths: TokenIds
    request_id: str
    is_retry: bool = False
    caller: str = ""
    waiting_tokens: int = 0

    @property
    def tokens(self) -> int:
        """The total number of tokens, without padding."""
        return len(self.ids)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class Failure:
    """One input that has no vector. `index` is its position in the result."""

    index: int
    code: FailureCode


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The vectors of a batch, of a part of it, or of a whole request.

    Attributes:
        vectors: the model's vectors, not yet normalized, float32 [inputs, dimensions]. If the model ends with a
            Normalize module, the replica leaves that module out, because the ingress normalizes vectors. Every row is
            finite, except the rows of failed inputs, which are meaningless.
        failures: the inputs without a vector, in order.
        padded_tokens: the number of tokens computed for each input, padding included, int64 [inputs].
        inference_s: the inference time of the batch, in seconds. For a whole request, it is the time during which at
            least one of its chunks was being computed.
        batch_inputs: the number of inputs in the batch.
        queue_s: the seconds that the ingress waited for the result in addition to `inference_s`: time in queues, and
            transfer to and from the replica.
    """

    vectors: Vectors
    failures: tuple[Failure, ...]
    padded_tokens: npt.NDArray[np.int64]
    inference_s: float
    batch_inputs: int
    queue_s: float = 0.0

    def part(self, start: int, stop: int) -> Self:
        """Return the result of the inputs from `start` to `stop`."""
        if (start, stop) == (0, len(self.vectors)):
            return self
        failures = (f for f in self.failures if start <= f.index < stop)
        return replace(
            self,
            vectors=self.vectors[start:stop],
            failures=tuple(Failure(f.index - start, f.code) for f in failures),
            padded_tokens=self.padded_tokens[start:stop],
        )


@dataclass(frozen=True, slots=True)
class ReplicaRejected:
    """A replica's answer to a call that it cannot take at the moment. The caller sends the call again, to any replica.

    A replica rejects all calls when it is about to be replaced. It also rejects a retry while it holds another retry:
    if the replica died with both retries, either of them could be the poison pill.
    """


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The state of one model replica, as Ray Serve delivers it to every ingress replica once a second.

    Attributes:
        replica: the replica's id, unique in the cluster.
        ongoing_calls: the number of calls in the replica; each carries one or more chunks.
        busy_seconds: the total seconds that the model's thread has been busy since the replica started. This includes
            the time to load the model.
        memory_bytes: the resident memory of the replica's process, in bytes.
        max_batch_tokens: the replica's current token budget, in tokens.
        max_queued_tokens: the replica's current `max_queued_tokens` setting. The limit of the model is the sum over its
            replicas.
        callers: the ids of the ingress replicas that have sent calls recently.
    """

    replica: str
    ongoing_calls: int
    busy_seconds: float
    memory_bytes: int
    max_batch_tokens: int
    max_queued_tokens: int
    callers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningReplica:
    """A replica to which Ray Serve sends calls.

    Attributes:
        max_ongoing_requests: the number of calls that Ray Serve lets the replica hold at the same time.
        state: its last reported state; None if it has not reported one, or cannot embed.
    """

    max_ongoing_requests: int
    state: ReplicaState | None


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
        queue_s: the seconds during which no part of the request was being computed: time in queues, and transfer to
            and from the replica.
        inference_s: the seconds during which at least one part of the request was being computed.
    """

    embeddings: Vectors
    model: str
    prompt_tokens: int
    truncated_inputs: int
    tokenization_s: float
    queue_s: float
    inference_s: float
