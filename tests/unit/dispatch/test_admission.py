import pytest

from serve_app.dispatch.admission import Admission
from tests.support.clock import Clock


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


def test_dropped_units_do_not_raise_the_drain_rate() -> None:
    clock = Clock()
    admission = Admission(limit=1000, unknown_s=3, clock=clock)
    admission.add(400)
    work(admission, clock, seconds=20, pace=100)
    admission.drop(300)

    assert admission.units == 100
    assert admission.wait_s == pytest.approx(1, rel=0.2)
