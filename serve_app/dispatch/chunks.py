"""Split a request into chunks, and join the chunks' results into one answer or error."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve_app.dispatch.queue import Answered
from serve_app.errors import InferenceError
from serve_app.messages import EmbedChunk, Failure, ModelAnswer, TokenizedInputs
from serve_app.token_budget import split_by_budget

logger = logging.getLogger("ray.serve.embeddings")


def split(inputs: TokenizedInputs, *, chunk_tokens: int, request_id: str) -> list[EmbedChunk]:
    """Split a request into chunks in input order.

    A chunk has at most `chunk_tokens` tokens, unless a single input is longer.
    """
    runs = split_by_budget(inputs.lengths, budget=chunk_tokens)
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


def join(chunks: Sequence[EmbedChunk], answers: Sequence[Answered], started: float) -> ModelAnswer:
    """Join the answers of a request's chunks, in input order.

    Args:
        chunks: all chunks of the request.
        answers: the answer of each chunk.
        started: the time at which the request was accepted, from `time.perf_counter`.
    """
    failures: list[Failure] = [
        replace(failure, index=chunk.first_input + failure.index)
        for chunk, answer in zip(chunks, answers, strict=True)
        for failure in answer.result.failures
    ]
    vectors = [answer.result.vectors for answer in answers]
    inference_s = _inference_seconds(answers)
    return ModelAnswer(
        vectors=vectors[0] if len(vectors) == 1 else np.concatenate(vectors),
        failures=tuple(failures),
        queue_s=max(max(answer.at for answer in answers) - started - inference_s, 0.0),
        inference_s=inference_s,
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
        param = f"input[{first}]"
        message = f"The model's process died twice while processing {param}."
        return InferenceError(message, "inference_failed", param)
    message = f"The model's process died twice while processing inputs {first} to {last}."
    return InferenceError(message, "inference_failed", "input")


def _inference_seconds(answers: Sequence[Answered]) -> float:
    """Return the seconds during which at least one chunk of the request was being computed.

    Chunks can be in the same batch, and batches can overlap. Time covered more than once counts once.
    """
    seconds, covered_until = 0.0, -math.inf
    batches = ((answer.at - answer.result.inference_s, answer.at) for answer in answers)
    for start, end in sorted(batches):
        seconds += max(end - max(start, covered_until), 0.0)
        covered_until = max(covered_until, end)
    return seconds
