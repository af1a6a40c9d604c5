"""Splits a request into chunks, packs chunks into calls, and joins their results.

A chunk is a part of one request. A call carries one or more chunks, of any requests, to a replica.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from serve_app.errors import InferenceError
from serve_app.messages import EmbedCall, EmbedResult, Failure, TokenizedInputs
from serve_app.token_budget import split_by_budget

logger = logging.getLogger("ray.serve.embeddings")


# Most inputs in a call. Their vectors are one message, which Ray Serve limits to 64 MiB (throughput.env): with 4,096
# dimensions, these are 32 MiB.
MAX_INPUTS = 2048


@dataclass(frozen=True, slots=True)
class EmbedChunk:
    """Inputs of one request that are sent to a replica together.

    Attributes:
        inputs: the inputs to embed.
        request_id: the id of the request.
        first_input: the position of the chunk's first input in the request.
    """

    inputs: TokenizedInputs
    request_id: str
    first_input: int = 0


def split(inputs: TokenizedInputs, *, chunk_tokens: int, request_id: str) -> list[EmbedChunk]:
    """Split a request into chunks in input order.

    A chunk has at most `chunk_tokens` tokens, unless a single input is longer, and at most
    `MAX_INPUTS` inputs.
    """
    runs = [
        slice(start, min(start + MAX_INPUTS, run.stop))
        for run in split_by_budget(inputs.lengths, budget=chunk_tokens)
        for start in range(run.start, run.stop, MAX_INPUTS)
    ]
    if len(runs) == 1:
        return [EmbedChunk(inputs, request_id)]
    ends = np.concatenate([[0], np.cumsum(inputs.lengths, dtype=np.int64)])
    return [
        EmbedChunk(
            TokenizedInputs(
                inputs.ids[ends[run.start] : ends[run.stop]],
                inputs.lengths[run],
                inputs.prompt_length,
            ),
            request_id,
            run.start,
        )
        for run in runs
    ]


def pack(
    chunks: Sequence[EmbedChunk], *, is_retry: bool, caller: str, waiting_tokens: int
) -> EmbedCall:
    """Pack chunks into one call, in order. The keyword arguments are attributes of `EmbedCall`."""
    inputs = [chunk.inputs for chunk in chunks]
    return EmbedCall(
        np.concatenate([part.ids for part in inputs]),
        np.concatenate([part.lengths for part in inputs]),
        np.concatenate([part.prompt_lengths for part in inputs]),
        request_id=chunks[0].request_id,
        is_retry=is_retry,
        caller=caller,
        waiting_tokens=waiting_tokens,
    )


def join(chunks: Sequence[EmbedChunk], results: Sequence[EmbedResult]) -> EmbedResult:
    """Join the results of all chunks of a request, which were queued at the same time."""
    if len(results) == 1:
        return results[0]
    seconds, covered_until = 0.0, -math.inf
    # Chunks can be in the same batch, and batches can overlap. Time covered more than once counts once.
    for start, end in sorted((r.queue_s, r.queue_s + r.inference_s) for r in results):
        seconds += max(end - max(start, covered_until), 0.0)
        covered_until = max(covered_until, end)
    failures = [
        Failure(chunk.first_input + failure.index, failure.code)
        for chunk, result in zip(chunks, results, strict=True)
        for failure in result.failures
    ]
    return replace(
        results[0],
        vectors=np.concatenate([result.vectors for result in results]),
        failures=tuple(failures),
        padded_tokens=np.concatenate([result.padded_tokens for result in results]),
        inference_s=seconds,
        queue_s=covered_until - seconds,
    )


def poison_pill(chunk: EmbedChunk) -> InferenceError:
    """Log a chunk that two replicas held when they died, and return the error for its request."""
    first, last = chunk.first_input, chunk.first_input + len(chunk.inputs) - 1
    logger.error(
        "the model's process died twice while processing inputs %d to %d",
        first,
        last,
        extra={"request_id": chunk.request_id},
    )
    if first == last:
        message = "The model's process died twice while processing {item}."
        return InferenceError(message, "inference_failed", "input", index=first)
    message = f"The model's process died twice while processing inputs {first} to {last}."
    return InferenceError(message, "inference_failed", "input")
