"""Turns the inputs of several calls into vectors, whichever engine runs the model.

The encoder cuts a batch into forward passes within a token budget. It chooses the cuts for which
the total cost, of padding and of the forward passes themselves, is lowest. If a forward pass fails,
the encoder retries each half of it, until the faulty input is in a forward pass of its own. Only
that input fails.

An encoder is used by one thread at a time. This module does not import torch or OpenVINO.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from serve_app.checkpoints.metadata import Checkpoint
from serve_app.encoder.batch import Batch, Indices, Inputs
from serve_app.encoder.engine import (
    DEFAULT_PASS_TOKENS,
    PASSES_PER_STREAM,
    EncoderBrokenError,
    Engine,
    Features,
    Pass,
    default_batch_tokens,
)
from serve_app.encoder.padding import gather, stream_budget
from serve_app.messages import EmbedResult

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve.embeddings")


class Encoder:
    """A loaded model, used by one thread at a time. `load_encoder` creates it.

    Args:
        engine: runs the forward passes.
        checkpoint: the model's metadata.
        max_batch_tokens: maximum number of tokens, padding included, in one forward pass. `encode`
            can override it. None stands for the device's default.
        pass_tokens: fixed cost of a forward pass that has the whole processor, as the number of
            tokens that take the same time. `load_encoder` measures it.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoint: Checkpoint,
        *,
        max_batch_tokens: int | None = None,
        pass_tokens: float = DEFAULT_PASS_TOKENS,
    ) -> None:
        assert checkpoint.dimensions is not None, "only models that embed are loaded"
        self.dimensions: int = checkpoint.dimensions
        self.device = engine.device
        self.engine_name = engine.name
        self._engine = engine
        self._includes_prompt = checkpoint.include_prompt
        self._max_batch_tokens = max_batch_tokens or default_batch_tokens(engine.device)
        self.pass_tokens = pass_tokens

    def encode(
        self, inputs: Sequence[Inputs], *, max_batch_tokens: int | None = None
    ) -> EmbedResult:
        """Encode the inputs of several calls. The result has the vectors in the same order.

        Args:
            inputs: the inputs of each call.
            max_batch_tokens: maximum number of tokens, padding included, in one forward pass. It
                overrides the encoder's own maximum.

        Raises:
            EncoderBrokenError: the device failed. Every later call would fail too.
        """
        started = time.perf_counter()
        batch = Batch(inputs, dimensions=self.dimensions, pads=self._engine.pads)
        unreadable = batch.unreadable(
            vocabulary_size=self._engine.vocabulary_size, may_be_empty=self._engine.reads_empty
        )
        batch.fail(np.flatnonzero(unreadable), "inference_failed")
        budget = max_batch_tokens or self._max_batch_tokens
        stream_tokens = stream_budget(
            batch.lengths[~unreadable], max_batch_tokens=budget, streams=self._engine.streams
        )
        # In a stream, a forward pass has only a part of the CPU's cores, so a token takes longer
        # than on the whole processor. The fixed cost of a forward pass takes the same time in both
        # cases, so in a stream this cost equals fewer tokens.
        passes = batch.passes(
            ~unreadable,
            max_batch_tokens=stream_tokens or budget,
            pass_tokens=self.pass_tokens / (self._engine.streams if stream_tokens else 1),
            mixes_prompts=self._includes_prompt,
        )
        self._run(batch, deque(passes), alone=stream_tokens is None)
        return batch.result(inference_s=time.perf_counter() - started)

    def _run(self, batch: Batch, waiting: deque[Indices], *, alone: bool) -> None:
        """Run the waiting forward passes, and the halves of those that fail."""
        engine = self._engine
        limit = engine.passes_at_once if alone else engine.streams * PASSES_PER_STREAM
        in_flight: deque[tuple[Indices, Pass]] = deque()
        while waiting or in_flight:
            if waiting and len(in_flight) < limit:
                indices = waiting.popleft()
                if started := self._try(indices, partial(self._start, batch, indices, alone=alone)):
                    in_flight.append((indices, started))
                    continue
            else:
                indices, started = in_flight.popleft()
                if self._try(indices, partial(_finish, batch, indices, started)):
                    continue
            _retry_in_halves(batch, indices, waiting)

    def _start(self, batch: Batch, indices: Indices, *, alone: bool) -> Pass:
        return self._engine.start(self._features(batch, indices), alone=alone)

    def _try(self, indices: Indices, step: Callable[[], Result]) -> Result | None:
        """Run one step of a forward pass; return None if it fails."""
        try:
            return step()
        except EncoderBrokenError:
            raise
        except Exception as error:
            logger.warning("forward pass failed: %s, %d inputs", type(error).__name__, len(indices))
        # Recover after the `except` block: inside it, the error's traceback still holds the tensors.
        self._engine.recover()
        return None

    def _features(self, batch: Batch, indices: Indices) -> Features:
        lengths = batch.lengths[indices].astype(np.int64)
        ids = gather(batch.ids, batch.starts[indices], lengths)
        return Features(ids, lengths, int(batch.prompt_lengths[indices[0]]))


def _finish(batch: Batch, indices: Indices, started: Pass) -> bool:
    """Wait for a forward pass and store its vectors."""
    vectors, finite = started.result()
    batch.keep(indices, vectors, finite)
    return True


def _retry_in_halves(batch: Batch, indices: Indices, waiting: deque[Indices]) -> None:
    """Queue both halves of a failed forward pass. A forward pass of a single input is not retried."""
    if len(indices) == 1:
        batch.fail(indices, "inference_failed")
        return
    middle = len(indices) // 2
    waiting.extendleft((indices[middle:], indices[:middle]))
