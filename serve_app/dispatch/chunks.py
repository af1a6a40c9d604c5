"""A request as the chunks that a model gets of it, and what became of them as one answer or error again."""

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
    """Cut a request into chunks of at most so many tokens, in input order."""
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
    """Put the chunks' answers together again, in input order."""
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
    """Return the error of a chunk that two replicas had when they died, and log whose it was."""
    first, count = chunk.first_input, len(chunk.inputs)
    logger.error(
        "the model's process died twice while it had this request's inputs %d to %d",
        first,
        first + count - 1,
        extra={"request_id": chunk.request_id},
    )
    if count == 1:
        item = f"input[{first}]"
        message = f"The model's process died twice while it had {item}."
        return InferenceError(message, "inference_failed", item)
    message = (
        f"The model's process died twice while it had the inputs {first} to {first + count - 1}."
    )
    return InferenceError(message, "inference_failed", "input")


def _inference_seconds(answers: Sequence[Answered]) -> float:
    """Return how long some batch of the request was being computed; chunks may share a batch, or a moment."""
    seconds, counted_until = 0.0, -math.inf
    for end, length in sorted((answer.at, answer.result.inference_s) for answer in answers):
        seconds += min(length, end - counted_until)
        counted_until = end
    return seconds
