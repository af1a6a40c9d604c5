import pytest

from serve_app.dispatch.drain_rate import DrainRate
from serve_app.dispatch.refusals import Refusals
from serve_app.observability.metrics import Metrics
from tests.support.fakes import counted


def test_the_two_errors_name_the_model_and_say_when_to_retry() -> None:
    metrics, drain_rate = Metrics(), DrainRate(unknown_s=20)
    drain_rate.start(1)
    refusals = Refusals("acme/tiny", drain_rate=drain_rate, retry_after_s=7, metrics=metrics)

    overloaded = refusals.overloaded("queued_tokens")
    unavailable = refusals.unavailable("no replica is ready")

    assert (overloaded.status, overloaded.code) == (429, "overloaded")
    assert overloaded.retry_after_s == pytest.approx(20, rel=0.25)
    assert (unavailable.status, unavailable.code) == (503, "model_unavailable")
    assert unavailable.retry_after_s == 7
    assert unavailable.message == "acme/tiny is unavailable: no replica is ready."
    assert counted(metrics, "embeddings_overload_refusals_total", reason="queued_tokens") == 1
