"""From the inputs of several chunks to their vectors, through whichever engine computes.

Inputs are padded batch by batch within a token budget, cut so that padding and passes cost least together. What fails
is tried again in halves, until the input at fault stands alone. One thread at a time; imports no library that computes.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from serve_app.checkpoints.metadata import Checkpoint
from serve_app.encoder.batch import Batch, Encoded, Indices
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
from serve_app.messages import TokenizedInputs

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve.embeddings")


class Encoder:
    """A loaded model. Made by `load_encoder`; used by one thread at a time.

    Args:
        engine: what computes.
        checkpoint: what the model's files say.
        max_batch_tokens: token budget where `encode` is given none.
        pass_tokens: what a forward pass that has the processor for itself costs beside its tokens, in tokens;
            `load_encoder` measures it.
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
        self, inputs: Sequence[TokenizedInputs], *, max_batch_tokens: int | None = None
    ) -> Encoded:
        """Return the vectors of the inputs of several chunks, one chunk after the other.

        Args:
            inputs: the chunks' inputs.
            max_batch_tokens: most tokens in a forward pass, padding included, instead of the encoder's own budget.

        Raises:
            EncoderBrokenError: the device failed, and everything after this would fail too.
        """
        batch = Batch(inputs, dimensions=self.dimensions, pads=self._engine.pads)
        unreadable = batch.unreadable(
            vocabulary_size=self._engine.vocabulary_size, may_be_empty=self._engine.reads_empty
        )
        batch.fail(np.flatnonzero(unreadable), "inference_failed")
        budget = max_batch_tokens or self._max_batch_tokens
        in_stream = stream_budget(
            batch.lengths[~unreadable], max_batch_tokens=budget, streams=self._engine.streams
        )
        # A stream takes longer over a token, but over what a pass costs as such no longer than the whole processor.
        passes = batch.passes(
            ~unreadable,
            max_batch_tokens=in_stream or budget,
            pass_tokens=self.pass_tokens / (self._engine.streams if in_stream else 1),
            mixes_prompts=self._includes_prompt,
        )
        self._run(batch, deque(passes), alone=in_stream is None)
        return batch.encoded()

    def _run(self, batch: Batch, waiting: deque[Indices], *, alone: bool) -> None:
        """Compute the passes that wait, and the halves of those that fail."""
        engine = self._engine
        at_once = engine.passes_at_once if alone else engine.streams * PASSES_PER_STREAM
        started: deque[tuple[Indices, Pass]] = deque()
        while waiting or started:
            if waiting and len(started) < at_once:
                indices = waiting.popleft()
                if one := self._try(indices, partial(self._start, batch, indices, alone=alone)):
                    started.append((indices, one))
                    continue
            else:
                indices, one = started.popleft()
                if self._try(indices, partial(_finish, batch, indices, one)):
                    continue
            _halve(batch, indices, waiting)

    def _start(self, batch: Batch, indices: Indices, *, alone: bool) -> Pass:
        return self._engine.start(self._features(batch, indices), alone=alone)

    def _try(self, indices: Indices, step: Callable[[], Result]) -> Result | None:
        """Take a step of a forward pass; return None when the pass failed."""
        try:
            return step()
        except EncoderBrokenError:
            raise
        except Exception as error:
            logger.warning("forward pass failed: %s, %d inputs", type(error).__name__, len(indices))
        self._engine.recover()  # out here, where the error no longer holds the pass's tensors
        return None

    def _features(self, batch: Batch, indices: Indices) -> Features:
        lengths = batch.lengths[indices].astype(np.int64)
        ids = gather(batch.ids, batch.starts[indices], lengths)
        return Features(ids, lengths, int(batch.prompt_lengths[indices[0]]))


def _finish(batch: Batch, indices: Indices, one: Pass) -> bool:
    """Keep what a pass gives, once it is there."""
    batch.keep(indices, *one.result())
    return True


def _halve(batch: Batch, indices: Indices, waiting: deque[Indices]) -> None:
    """Have a failed pass tried again in halves; an input that failed alone is given up."""
    if len(indices) == 1:
        batch.fail(indices, "inference_failed")
        return
    middle = len(indices) // 2
    waiting.extendleft((indices[middle:], indices[:middle]))
