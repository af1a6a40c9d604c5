from dataclasses import dataclass

import pytest

from serve_app.dispatch.admission import Admission


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def work(admission: Admission, clock: Clock, *, seconds: float, pace: float) -> None:
    """Finish and add `pace` units every second, so that the pending units stay constant."""
    for _ in range(round(seconds)):
        clock.now += 1
        admission.finish(round(pace))
        admission.add(round(pace))


def test_units_are_admitted_up_to_the_limit() -> None:
    admission = Admission(limit=10, unknown_s=1)

    admission.add(8)
    assert admission.has_room(2)
    assert not admission.has_room(3)
    assert admission.remaining == 2
    admission.add(8)
    assert admission.remaining == 0


def test_an_empty_queue_admits_any_amount_unless_the_limit_is_0() -> None:
    assert Admission(limit=10, unknown_s=1).has_room(11)
    assert not Admission(limit=0, unknown_s=1).has_room(1)


def test_ingress_replicas_share_a_limit_equally() -> None:
    admission = Admission(limit=90, unknown_s=1)
    admission.add(20)

    admission.sharers = 3
    assert admission.has_room(10)
    assert not admission.has_room(11)
    assert admission.remaining == 10


def test_bulk_is_refused_first_and_takes_no_room() -> None:
    admission = Admission(limit=100, unknown_s=1)
    admission.add(60)

    assert admission.has_room(15, is_bulk=True)
    assert not admission.has_room(16, is_bulk=True)
    admission.add(15, is_bulk=True)
    assert not admission.has_room(1, is_bulk=True)
    assert admission.has_room(40)
    assert not admission.has_room(41)
    assert admission.remaining == 40


def test_a_bulk_request_above_the_limit_is_admitted_at_low_load() -> None:
    """Otherwise steady small traffic would keep it out forever."""
    admission = Admission(limit=100, unknown_s=1)
    admission.add(50)

    assert admission.has_room(300, is_bulk=True)
    admission.add(300, is_bulk=True)
    assert admission.has_room(50)
    assert not admission.has_room(1, is_bulk=True)
    assert admission.remaining == 50
    admission.finish(200, is_bulk=True)
    admission.drop(100, is_bulk=True)
    assert admission.has_room(300, is_bulk=True)

    admission.add(1)
    assert not admission.has_room(300, is_bulk=True)


def test_without_a_limit_everything_is_admitted() -> None:
    admission = Admission(limit=None, unknown_s=1)
    admission.add(10**9)

    assert admission.has_room(10**9)


def test_the_wait_is_pending_units_over_the_recent_drain_rate() -> None:
    clock = Clock()
    admission = Admission(limit=1000, unknown_s=3, clock=clock)
    admission.add(600)

    assert admission.wait_s == 3
    work(admission, clock, seconds=20, pace=100)
    assert admission.wait_s == pytest.approx(6, rel=0.2)
    work(admission, clock, seconds=60, pace=20)
    assert admission.wait_s == pytest.approx(30, rel=0.2)


def test_a_lightly_loaded_model_does_not_look_slow() -> None:
    """It finished ten units a second because ten were pending; its rate at 1000 is unknown."""
    clock = Clock()
    admission = Admission(limit=1000, unknown_s=3, clock=clock)
    admission.add(10)
    work(admission, clock, seconds=30, pace=10)
    assert admission.wait_s == pytest.approx(1, rel=0.2)

    admission.add(990)
    assert admission.wait_s == 3
    clock.now += 1
    admission.finish(200)

    assert admission.wait_s == pytest.approx(4, rel=0.2)


def test_idle_time_does_not_lower_the_drain_rate() -> None:
    clock = Clock()
    admission = Admission(limit=1000, unknown_s=3, clock=clock)
    admission.add(100)
    work(admission, clock, seconds=20, pace=100)
    before = admission.wait_s
    admission.finish(100)
    assert admission.wait_s == 0
    clock.now += 3600
    admission.add(100)

    assert admission.wait_s == pytest.approx(before, rel=0.1)


def test_the_wait_grows_to_an_hour_while_nothing_finishes() -> None:
    clock = Clock()
    admission = Admission(limit=None, unknown_s=3, clock=clock)
    admission.add(1000)
    work(admission, clock, seconds=5, pace=100)
    before = admission.wait_s
    clock.now += 5
    assert admission.wait_s > 1.5 * before

    clock.now += 600
    assert admission.wait_s == 3600

    clock.now += 600_000
    assert admission.wait_s == 3600


def test_dropped_units_do_not_raise_the_drain_rate() -> None:
    clock = Clock()
    admission = Admission(limit=1000, unknown_s=3, clock=clock)
    admission.add(400)
    work(admission, clock, seconds=20, pace=100)
    admission.drop(300)

    assert admission.units == 100
    assert admission.wait_s == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(("units", "least", "most"), [(1, 1, 1), (600, 4, 8), (10**6, 60, 60)])
def test_retry_after_is_between_a_second_and_a_minute(
    units: int, least: float, most: float
) -> None:
    clock = Clock()
    admission = Admission(limit=None, unknown_s=3, clock=clock)
    admission.add(units)
    work(admission, clock, seconds=20, pace=100)

    waits = [admission.retry_after_s for _ in range(50)]

    assert least <= min(waits) <= max(waits) <= most
    has_jitter = len(set(waits)) > 1
    assert has_jitter == (least < most)
