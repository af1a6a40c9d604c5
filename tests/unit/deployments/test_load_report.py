import pytest

from serve_app.deployments.autoscaling import BUSY, WAITING_S
from serve_app.deployments.load_report import LoadReport


class Clock:
    """A time that is set."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Begin some time."""
    return Clock()


def test_how_busy_it_was_is_told_since_the_last_time(clock: Clock) -> None:
    """As a share of the time that has passed."""
    report = LoadReport(clock=clock)
    clock.now += 10
    first = report.report(5.0)
    clock.now += 2
    second = report.report(7.0)

    assert (first[BUSY], second[BUSY]) == (0.5, 1.0)
    assert report.report(7.0)[BUSY] == 0


def test_what_waits_is_told_in_seconds_of_work(clock: Clock) -> None:
    """Added up over the ingress replicas, at the pace of the batches that were computed."""
    report = LoadReport(clock=clock)
    report.record_backlog("one", 300)
    assert report.report(0.0)[WAITING_S] == 0  # nothing is known of its pace yet

    report.computed(100, 0.5)
    report.record_backlog("one", 400)
    report.record_backlog("two", 600)

    assert report.report(0.5)[WAITING_S] == pytest.approx(5.0)


def test_it_is_known_in_how_many_others_something_waits(clock: Clock) -> None:
    """Those at rest are not counted, nor those of whom nothing was heard for long."""
    report = LoadReport(clock=clock)
    report.record_backlog("one", 300)
    clock.now += 4
    report.record_backlog("two", 200)
    report.record_backlog("three", 0)

    assert report.others_waiting("two") == 1
    assert report.others_waiting("three") == 2
    clock.now += 4
    assert report.others_waiting("three") == 1


def test_what_was_told_is_forgotten_after_some_seconds(clock: Clock) -> None:
    """Its ingress replica has nothing waiting any more, or is gone."""
    report = LoadReport(clock=clock)
    report.computed(100, 1.0)
    report.record_backlog("one", 400)
    clock.now += 5
    report.record_backlog("two", 100)
    clock.now += 2

    assert report.report(1.0)[WAITING_S] == pytest.approx(1.0)


def test_the_pace_is_that_of_lately(clock: Clock) -> None:
    """A model that was slow while it warmed up is not slow for ever."""
    report = LoadReport(clock=clock)
    report.computed(10, 5.0)
    for _ in range(100):
        report.computed(1000, 1.0)
    report.record_backlog("one", 5000)

    assert report.report(0.0)[WAITING_S] == pytest.approx(5.0, rel=0.01)
