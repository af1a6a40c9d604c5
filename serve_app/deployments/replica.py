"""The deployment of one model: each replica holds the model and batches incoming calls.

A replica is a thin wrapper. `@serve.batch` combines the calls that wait into one batch, and the
model's thread encodes it. This module does not depend on HTTP, on texts or on metrics.
"""

import asyncio
import logging
import os
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import psutil
import ray
from pydantic import ValidationError
from ray import serve

from serve_app.config.models import BatchSettings, ModelConfig, format_validation_error
from serve_app.deployments.load_report import LoadReport
from serve_app.deployments.model_thread import ModelThread, ModelThreadError
from serve_app.encoder import Encoder, EncoderBrokenError, default_batch_tokens, load_encoder
from serve_app.errors import UnavailableError
from serve_app.messages import EmbedCall, EmbedResult, ReplicaRejected, ReplicaState

logger = logging.getLogger("ray.serve.embeddings")

# Most calls in one batch. `reconfigure` lowers it to half of `max_ongoing_requests`: to one, by default.
_MAX_BATCH_CALLS = 256
# Time for a failed replica to send its last replies before its process exits.
_EXIT_DELAY_S = 0.2


class EmbeddingReplica:
    """One loaded model.

    Args:
        model: the model's settings.

    Raises:
        ModelLoadError: the model cannot be loaded.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._settings: BatchSettings = model
        self._thread = ModelThread()
        self._thread.start()
        # The thread that computes also loads the model: OpenMP and CUDA keep state per thread.
        self._encoder: Encoder = self._thread.submit(self._load).result()
        self._ongoing_calls = 0
        self._is_ending = False
        self._has_retry = False
        # Loading does not count as busy time.
        self._load_report = LoadReport(self._thread.busy_seconds)
        self._name = serve.get_replica_context().replica_id.unique_id

    def _load(self) -> Encoder:
        model = self._model
        return load_encoder(
            model.source,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            device=model.device,
            engine=model.engine,
            dtype=model.dtype,
            padding=model.padding,
            threads=model.threads or _granted_threads(),
            max_batch_tokens=model.max_batch_tokens,
        )

    @property
    def _budget(self) -> int:
        return self._settings.max_batch_tokens or default_batch_tokens(self._encoder.device)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new batch settings from Ray Serve's `user_config`, without a restart.

        Invalid settings are logged and ignored. If this method raised, Ray Serve would replace a
        healthy replica with one that cannot start.
        """
        own = self._model.model_dump(include=set(BatchSettings.model_fields))
        try:
            self._settings = BatchSettings.model_validate(own | user_config)
        except ValidationError as error:
            reason = format_validation_error(error)
            logger.error("invalid user_config ignored: %s", reason)  # noqa: TRY400  # no traceback
            return
        # Up to two batches exist at the same time. Ray Serve logs a warning if these two could
        # together hold more calls than `max_ongoing_requests`.
        calls = max(self._model.deployment.max_ongoing_requests // 2, 1)
        self._encode.set_max_batch_size(min(calls, _MAX_BATCH_CALLS))
        logger.info("batch settings: %s", self._settings.model_dump())

    async def embed(self, call: EmbedCall) -> EmbedResult | ReplicaRejected:
        """Encode the inputs of one call.

        The replica rejects the call in two cases:

        - The replica is about to exit.
        - The call is a retry, and the replica already holds another retry. If the process died with
          both retries, either of them could be the cause.

        Raises:
            UnavailableError: the model is permanently broken, and this replica exits.
        """
        self._load_report.record_backlog(call.caller, call.waiting_tokens)
        if self._is_ending or (call.is_retry and self._has_retry):
            return ReplicaRejected()
        if not call.is_retry:
            return await self._embed(call)
        self._has_retry = True
        embedding = asyncio.create_task(self._embed(call))
        embedding.add_done_callback(self._retry_ended)
        return await asyncio.shield(embedding)

    def _retry_ended(self, embedding: asyncio.Future[EmbedResult]) -> None:
        # Not when its caller leaves: the batch may still be computed, and end this process.
        self._has_retry = False
        if not embedding.cancelled():
            embedding.exception()  # asyncio would log one that nobody retrieves

    async def _embed(self, call: EmbedCall) -> EmbedResult:
        self._ongoing_calls += 1
        try:
            result: EmbedResult = await self._encode(call)
        except (EncoderBrokenError, ModelThreadError) as error:
            self._end(type(error).__name__, call.request_id)
            raise UnavailableError(
                "The model's replica is being replaced.", "model_unavailable"
            ) from None
        finally:
            self._ongoing_calls -= 1
        return result

    # Two batches at once: one is computed and one is ready in the model thread's queue.
    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=_MAX_BATCH_CALLS, batch_wait_timeout_s=0.0, max_concurrent_batches=2
    )
    async def _encode(self, calls: list[EmbedCall]) -> list[EmbedResult]:
        """Encode several calls as one batch on the model's thread."""
        work = partial(self._encoder.encode, calls, max_batch_tokens=self._budget)
        result = await asyncio.wrap_future(self._thread.submit(work))
        self._load_report.computed(sum(call.tokens for call in calls), result.inference_s)
        ends = np.cumsum([len(call) for call in calls])
        return [result.part(end - len(call), end) for call, end in zip(calls, ends, strict=True)]

    # Async, because Ray Serve runs synchronous methods in threads.
    async def record_routing_stats(self) -> dict[str, Any]:
        """Return this replica's `ReplicaState` as a dict, which is empty if it cannot embed.

        Ray Serve calls this periodically, and sends the result to all ingress replicas. The dict
        contains only built-in types, because Ray Serve's controller cannot import this project.
        """
        if self._find_failure():
            return {}
        state = ReplicaState(
            replica=self._name,
            ongoing_calls=self._ongoing_calls,
            busy_seconds=self._thread.busy_seconds,
            memory_bytes=psutil.Process().memory_info().rss,
            max_batch_tokens=self._budget,
            max_queued_tokens=self._settings.max_queued_tokens,
            callers=self._load_report.callers(),
        )
        return asdict(state)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the input of `WorkPolicy`. Ray Serve calls this periodically."""
        return self._load_report.report(self._thread.busy_seconds)

    async def check_health(self) -> None:
        """Check that the model can compute, and end this process if it cannot.

        Raises:
            ModelThreadError: the model's thread is dead or hangs, or the model's device is broken.
        """
        if reason := self._find_failure():
            self._end(reason)
            raise ModelThreadError(reason)

    def _find_failure(self) -> str:
        """Return the reason why this replica cannot embed; empty if it can."""
        if self._is_ending:
            return "this replica is shutting down"
        try:
            self._thread.check(hang_timeout_s=self._settings.hang_timeout_s)
        except ModelThreadError as error:
            return str(error)
        return ""

    def _end(self, reason: str, request_id: str = "") -> None:
        """End this process soon.

        Ray Serve replaces a dead replica at once, but an unhealthy replica only after several failed
        health checks.
        """
        if self._is_ending:
            return
        self._is_ending = True
        fields = {"request_id": request_id} if request_id else {}
        logger.error("the model is broken, this replica exits: %s", reason, extra=fields)
        asyncio.get_running_loop().call_later(_EXIT_DELAY_S, _exit)


def _exit() -> None:
    logging.shutdown()  # flushes buffered log lines
    os._exit(1)  # the only way to end a process with a hanging thread


def _granted_threads() -> int:
    """Return the number of CPU threads.

    It is the number of CPUs that Ray granted to this replica, or the number of all cores if Ray
    granted less than one CPU. Such a fractional grant lets several replicas share a machine. It
    does not mean that a model should compute on less than one core.
    """
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return int(cpus) if cpus >= 1 else (os.cpu_count() or 1)
