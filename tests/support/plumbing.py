"""The application with an encoder whose pace and faults the inputs choose; all else is the product's own.

An input's vector is the sum of its token ids and their count, then zeros, so a test knows it without a model.
"""

import os
import time
from collections.abc import Sequence

import numpy as np
from ray.serve import Application

from serve_app.app import compose
from serve_app.config.models import ServerConfig
from serve_app.deployments.replica import EmbeddingReplica
from serve_app.encoder import Encoded, EncoderBrokenError
from serve_app.errors import ModelLoadError
from serve_app.messages import Failure, TokenizedInputs

# Ids of words in the embedded default's vocabulary, and what the encoder does when it reads them.
SLOW, POISON, DEATH, WEDGE, BROKEN = 4030, 9947, 2331, 17632, 3714  # "slow", "poison", ...
SLOW_S, WEDGE_S = 0.3, 30.0
# What every batch takes in the application that only sleeps: a replica with a token budget of one text does a hundred
# texts a second, whatever the processor.
BATCH_S = 0.010
DIMENSIONS = 384


def build(config: ServerConfig) -> Application:
    """Build the product's application around `ObedientEncoder`."""
    return compose(config, replica=PlumbingReplica)


def build_sleeping(config: ServerConfig) -> Application:
    """Build it around an encoder that takes the same time for every batch."""
    return compose(config, replica=SleepingReplica)


class ObedientEncoder:
    """Does what the words of its inputs say.

    Args:
        batch_s: how long every batch takes.
    """

    dimensions = DIMENSIONS
    device = "cpu"

    def __init__(self, batch_s: float = 0.0) -> None:
        self._batch_s = batch_s

    def encode(
        self,
        inputs: Sequence[TokenizedInputs],
        *,
        max_batch_tokens: int | None = None,  # noqa: ARG002
    ) -> Encoded:
        """Encode by arithmetic, slowly or not at all where a word says so."""
        rows = [
            ids for chunk in inputs for ids in np.split(chunk.ids, np.cumsum(chunk.lengths)[:-1])
        ]
        words = set(np.concatenate(rows).tolist())
        if DEATH in words:
            os._exit(1)
        if BROKEN in words:
            raise EncoderBrokenError("no more of this device")
        time.sleep(WEDGE_S if WEDGE in words else SLOW_S if SLOW in words else self._batch_s)
        vectors = np.zeros((len(rows), DIMENSIONS), np.float32)
        vectors[:, 0] = [ids.sum() for ids in rows]
        vectors[:, 1] = [len(ids) for ids in rows]
        failures = [Failure(i, "inference_failed") for i, ids in enumerate(rows) if POISON in ids]
        return Encoded(vectors, tuple(failures), np.array([len(ids) for ids in rows], np.int64))


class PlumbingReplica(EmbeddingReplica):
    """The product's replica around that encoder."""

    def _load(self) -> ObedientEncoder:  # type: ignore[override]
        if self._model.device.startswith("cuda"):
            raise ModelLoadError("There is no GPU here.")
        return ObedientEncoder()


class SleepingReplica(EmbeddingReplica):
    """The product's replica around an encoder that sleeps."""

    def _load(self) -> ObedientEncoder:  # type: ignore[override]
        return ObedientEncoder(batch_s=BATCH_S)
