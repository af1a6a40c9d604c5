"""The product's application with a fake encoder whose delays and failures are controlled by the inputs.

An input's vector is the sum of its token ids and their count, followed by zeros. A test can compute it without a model.
"""

import os
import time
from collections.abc import Sequence

import numpy as np
from ray.serve import Application

from serve_app.app import compose
from serve_app.config.models import ServerConfig
from serve_app.deployments.replica import EmbeddingReplica
from serve_app.encoder import EncoderBrokenError
from serve_app.errors import ModelLoadError
from serve_app.messages import EmbedCall, EmbedResult, Failure

# Token ids, in the default model's vocabulary, of the words that control the encoder: "slow", "poison" and so on.
SLOW, POISON, DEATH, WEDGE, BROKEN = 4030, 9947, 2331, 17632, 3714
SLOW_S, WEDGE_S = 0.3, 30.0
# The duration of every batch in the sleeping application. With a token budget of one text, a replica encodes a hundred
# texts per second on any processor.
BATCH_S = 0.010
DIMENSIONS = 384


def build(config: ServerConfig) -> Application:
    """Build the product's application around `ObedientEncoder`."""
    return compose(config, replica=PlumbingReplica)


def build_sleeping(config: ServerConfig) -> Application:
    """Build the product's application around an encoder that sleeps for the same time in every batch."""
    return compose(config, replica=SleepingReplica)


class ObedientEncoder:
    """A fake encoder that obeys control words in its inputs.

    Args:
        batch_s: seconds per batch without a control word.
    """

    dimensions = DIMENSIONS
    device = "cpu"

    def __init__(self, batch_s: float = 0.0) -> None:
        self._batch_s = batch_s

    def encode(
        self,
        inputs: Sequence[EmbedCall],
        *,
        max_batch_tokens: int | None = None,  # noqa: ARG002
    ) -> EmbedResult:
        """Compute the vectors, or delay, fail or exit if an input has a control word.

        Raises:
            EncoderBrokenError: An input has the word "broken".
        """
        started = time.perf_counter()
        rows = [ids for call in inputs for ids in np.split(call.ids, np.cumsum(call.lengths)[:-1])]
        words: set[int] = set() if self._batch_s else set(np.concatenate(rows).tolist())
        if DEATH in words:
            os._exit(1)
        if BROKEN in words:
            raise EncoderBrokenError("The device is broken.")
        if WEDGE in words:
            time.sleep(WEDGE_S)
        elif SLOW in words:
            time.sleep(SLOW_S)
        else:
            time.sleep(self._batch_s)
        vectors = np.zeros((len(rows), DIMENSIONS), np.float32)
        vectors[:, 0] = [ids.sum() for ids in rows]
        vectors[:, 1] = [len(ids) for ids in rows]
        failures = [Failure(i, "inference_failed") for i, ids in enumerate(rows) if POISON in ids]
        return EmbedResult(
            vectors,
            tuple(failures),
            np.array([len(ids) for ids in rows], np.int64),
            time.perf_counter() - started,
            len(rows),
        )


class PlumbingReplica(EmbeddingReplica):
    """The product's replica with `ObedientEncoder`."""

    def _load(self) -> ObedientEncoder:  # type: ignore[override]
        if self._model.device.startswith("cuda"):
            raise ModelLoadError("No GPU is available.")
        return ObedientEncoder()


class SleepingReplica(EmbeddingReplica):
    """The product's replica with an encoder that sleeps in every batch."""

    def _load(self) -> ObedientEncoder:  # type: ignore[override]
        return ObedientEncoder(batch_s=BATCH_S)
