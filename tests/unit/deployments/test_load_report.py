import pytest

from serve_app.deployments.autoscaling import BUSY, WAITING_S
from serve_app.deployments.load_report import LoadReport
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_busy_is_the_share_of_time_since_the_last_report(clock: Clock) -> None:
    report = LoadReport(clock=clock)
    clock.now += 10
    first = report.report(5.0)
    clock.now += 2
    second = report.report(7.0)

    assert (first[BUSY], second[BUSY]) == (0.5, 1.0)
    assert report.report(7.0)[BUSY] == 0


def test_waiting_work_sums_all_backlogs_in_seconds(clock: Clock) -> None:
    report = LoadReport(clock=clock)
    report.record_backlog("one", 300)
    assert report.report(0.0)[WAITING_S] == 0  # no throughput has been measured yet

    report.computed(100, 0.5)
    report.record_backlog("one", 400)
    report.record_backlog("two", 600)

    assert report.report(0.5)[WAITING_S] == pytest.approx(5.0)


def test_callers_are_named_until_their_reports_expire(clock: Clock) -> None:
    report = LoadReport(clock=clock)
    report.record_backlog("one", 300)
    clock.now += 6
    report.record_backlog("two", 200)
    report.record_backlog("three", 0)

    assert report.callers() == ("one", "two", "three")
    clock.now += 6
    assert report.callers() == ("two", "three")


def test_a_backlog_expires_after_some_seconds(clock: Clock) -> None:
    report = LoadReport(clock=clock)
    report.computed(100, 1.0)
    report.record_backlog("one", 400)
    clock.now += 8
    report.record_backlog("two", 100)
    clock.now += 3

    assert report.report(1.0)[WAITING_S] == pytest.approx(1.0)


def test_a_backlog_lasts_for_four_batches_of_a_slow_model(clock: Clock) -> None:
    """Otherwise, two ingress replicas that take turns would not learn of each other."""
    report = LoadReport(clock=clock)
    report.record_backlog("one", 100)
    report.computed(100, 15.0)

    clock.now += 45
    before = report.callers()
    clock.now += 16

    assert (before, report.callers()) == (("one",), ())


def test_the_throughput_is_that_of_recent_batches(clock: Clock) -> None:
    """A model that was slow while it warmed up must not look slow forever."""
    report = LoadReport(clock=clock)
    report.computed(10, 5.0)
    for _ in range(100):
        report.computed(1000, 1.0)
    report.record_backlog("one", 5000)

    assert report.report(0.0)[WAITING_S] == pytest.approx(5.0, rel=0.01)
