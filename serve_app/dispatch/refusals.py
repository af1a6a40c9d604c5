"""The two errors of a model that cannot take a request: 429 and 503."""

from serve_app.dispatch.drain_rate import DrainRate
from serve_app.errors import OverloadedError, UnavailableError
from serve_app.observability.metrics import Metrics, Reason


class Refusals:
    """Creates the errors of one model.

    Args:
        model: the served model's name.
        drain_rate: measures `Retry-After` of a 429.
        retry_after_s: `Retry-After` of a 503, in seconds.
        metrics: counts the 429s.
    """

    def __init__(
        self, model: str, *, drain_rate: DrainRate, retry_after_s: int, metrics: Metrics
    ) -> None:
        self._model = model
        self._drain_rate = drain_rate
        self._retry_after_s = retry_after_s
        self._metrics = metrics

    def overloaded(self, reason: Reason) -> OverloadedError:
        """Count a 429 and return its error."""
        self._metrics.overloaded(reason=reason)
        message = f"The queue of {self._model} is full. Retry after the delay given in the Retry-After header."
        return OverloadedError(message, "overloaded", retry_after_s=self._drain_rate.retry_after_s)

    def unavailable(self, reason: str) -> UnavailableError:
        """Return the error of a 503, whose message gives the reason."""
        message = f"{self._model} is unavailable: {reason}."
        return UnavailableError(message, "model_unavailable", retry_after_s=self._retry_after_s)
