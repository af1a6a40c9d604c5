"""This server around a model that sleeps instead of computing, so that what is measured is the way to it and back.

With a token budget of one text a replica can do a hundred texts a second, whatever the processor.
"""

import time
from collections.abc import Sequence

import numpy as np
from ray.serve import Application

from serve_app.app import compose
from serve_app.config.models import ServerConfig
from serve_app.deployments.replica import EmbeddingReplica
from serve_app.encoder import Encoded
from serve_app.messages import TokenizedInputs

BATCH_S = 0.010
_DIMENSIONS = 384


def build(config: ServerConfig) -> Application:
    """Build the application around `SleepingEncoder`."""
    return compose(config, replica=SleepingReplica)


class SleepingEncoder:
    """Takes the same time for every batch and gives vectors of ones."""

    device = "cpu"

    def encode(
        self,
        inputs: Sequence[TokenizedInputs],
        *,
        max_batch_tokens: int | None = None,  # noqa: ARG002
    ) -> Encoded:
        """Sleep, on the model's thread as an encoder would compute."""
        time.sleep(BATCH_S)
        lengths = np.concatenate([job.lengths for job in inputs])
        vectors = np.ones((len(lengths), _DIMENSIONS), np.float32)
        return Encoded(vectors, (), lengths.astype(np.int64))


class SleepingReplica(EmbeddingReplica):
    """The product's replica around that encoder."""

    def _load(self) -> SleepingEncoder:  # type: ignore[override]
        return SleepingEncoder()
