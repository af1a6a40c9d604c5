"""The ingress's client of one model: admission, chunks, queue, and limits that follow the replicas.

The number of waiting tokens is limited. A request is split into chunks of at most half a token
budget, so that each call leaves room for other requests. This module does not depend on HTTP, JSON or
Ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.dispatch.admission import Admission
from serve_app.dispatch.chunks import join, split
from serve_app.dispatch.drain_rate import DrainRate
from serve_app.dispatch.queue import Caller, CallQueue, ReplicaRejectedError, TooManyCallsError
from serve_app.dispatch.refusals import Refusals
from serve_app.dispatch.replica_monitor import ReplicaMonitor
from serve_app.messages import EmbedResult, ReplicaState, RunningReplica, TokenizedInputs

# Calls that an ingress replica sends to each model replica even if they are not full: one is
# computed and one is ready, so that the model never waits.
_EAGER_CALLS = 2


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of one model's client.

    Attributes:
        chunk_tokens: maximum number of tokens in a call until the replicas have reported their token
            budgets. A longer input is sent in a call of its own.
        max_queued_tokens: maximum number of waiting tokens until the replicas have reported their
            limits. If no tokens wait, one request of any size is accepted.
        replica_wait_timeout_s: seconds that a call may wait while no replica is running, or while
            all replicas reject it.
        bulk_share: minimum fraction of the tokens sent, 0 to 1, that are bulk while interactive and
            bulk requests wait.
        scales_to_zero: whether the model may have no replica while it is idle.
    """

    chunk_tokens: int
    max_queued_tokens: int
    replica_wait_timeout_s: float
    bulk_share: float
    scales_to_zero: bool = False


class ModelClient:
    """Calls the replicas of one model.

    Args:
        caller: makes the calls.
        settings: see `ClientSettings`.
        replicas: returns the replicas that Ray Serve sends calls to.
        drain_rate: counts the pending tokens.
        refusals: creates the errors of the model.
    """

    def __init__(
        self,
        caller: Caller,
        settings: ClientSettings,
        *,
        replicas: Callable[[], Sequence[RunningReplica]],
        drain_rate: DrainRate,
        refusals: Refusals,
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._drain_rate = drain_rate
        self._refusals = refusals
        self._admission = Admission(limit=settings.max_queued_tokens)
        self._queue = CallQueue(
            caller,
            admission=self._admission,
            drain_rate=drain_rate,
            budget=settings.chunk_tokens,
            bulk_share=settings.bulk_share,
            wait_timeout_s=settings.replica_wait_timeout_s,
        )
        self._monitor = ReplicaMonitor(
            replicas, is_needed=lambda: drain_rate.pending > 0, on_look=self._adapt
        )

    async def embed(
        self, inputs: TokenizedInputs, *, request_id: str, is_bulk: bool = False
    ) -> EmbedResult:
        """Return the vectors of all inputs.

        Args:
            inputs: the tokenized inputs of one request.
            request_id: the request's id, for logs.
            is_bulk: whether the request is bulk. Interactive requests go before bulk requests, and
                under overload bulk requests are rejected first.

        Raises:
            OverloadedError: the token limit is reached, or Ray Serve's queue of calls is full.
            UnavailableError: no replica is running, or all replicas rejected the call.
            InferenceError: two replicas died while they held the same chunk.
        """
        self._monitor.start()
        if not self._admission.has_room(inputs.tokens, is_bulk=is_bulk):
            raise self._refusals.overloaded("queued_tokens")
        chunks = split(inputs, chunk_tokens=-(-self._queue.budget // 2), request_id=request_id)
        try:
            return join(chunks, await self._queue.send(chunks, is_bulk=is_bulk))
        except TooManyCallsError:
            raise self._refusals.overloaded("serve_queue") from None
        except ReplicaRejectedError:
            raise self._refusals.unavailable("its replicas reject the call") from None

    @property
    def queued_tokens(self) -> int:
        """The number of tokens that wait in this ingress replica."""
        return self._admission.units

    def states(self) -> list[ReplicaState]:
        """Return the state of every replica that is ready to embed."""
        return [replica.state for replica in self._replicas() if replica.state is not None]

    @property
    def is_ready(self) -> bool:
        """Whether a replica is ready, or the first request would start one."""
        return self._settings.scales_to_zero or bool(self.states())

    def _adapt(self, replicas: Sequence[RunningReplica], absent_s: float) -> None:
        """Adapt the limits to the replicas; fail old chunks if none has been running for too long."""
        states = [replica.state for replica in replicas if replica.state is not None]
        if states:
            # Use the values that the replicas report: `user_config` changes their settings while
            # they run, and the default token budget depends on their device.
            self._queue.budget = min(state.max_batch_tokens for state in states)
            self._admission.limit = sum(state.max_queued_tokens for state in states)
        callers = {caller for state in states for caller in state.callers}
        self._admission.sharers = len(callers | {self._queue.name})
        calls = sum(replica.max_ongoing_requests for replica in replicas)
        # Ray Serve makes calls wait that exceed its limit. It polls on their behalf, so the ingress
        # replicas share the limit and send no more.
        self._queue.max_in_flight = max(calls // self._admission.sharers, 1)
        self._queue.eager_calls = _EAGER_CALLS * max(len(replicas), 1)
        self._queue.start_calls()
        timeout_s = self._settings.replica_wait_timeout_s
        if absent_s >= timeout_s:  # Ray Serve lets a call wait forever if there is no replica
            self._queue.fail_waiting(
                self._refusals.unavailable("no replica is ready"), after_s=timeout_s
            )
