import math
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
    """Do what is there at a steady pace, and keep it as full as it is."""
    for _ in range(round(seconds)):
        clock.now += 1
        admission.finish(round(pace))
        admission.add(round(pace))


def test_there_is_room_up_to_the_limit() -> None:
    """And none beyond it."""
    admission = Admission(limit=10, unknown_s=1)

    admission.add(8)
    assert admission.has_room(2)
    assert not admission.has_room(3)
    assert admission.remaining == 2
    admission.add(8)
    assert admission.remaining == 0


def test_one_finds_room_where_nothing_is() -> None:
    """However large it is, but not where nothing at all shall be taken."""
    assert Admission(limit=10, unknown_s=1).has_room(11)
    assert not Admission(limit=0, unknown_s=1).has_room(1)


def test_a_limit_is_shared_in_equal_parts() -> None:
    """Each gets an equal part of the work done, so whoever had more would wait longer."""
    admission = Admission(limit=90, unknown_s=1)
    admission.add(20)

    admission.sharers = 3
    assert admission.has_room(10)
    assert not admission.has_room(11)
    assert admission.remaining == 10


def test_bulk_takes_no_room_from_others_and_is_refused_first() -> None:
    """A quarter is kept for what somebody waits for; whatever bulk there is is overtaken."""
    admission = Admission(limit=100, unknown_s=1)
    admission.add(60)

    assert admission.has_room(15, is_bulk=True)
    assert not admission.has_room(16, is_bulk=True)
    admission.add(15, is_bulk=True)
    assert not admission.has_room(1, is_bulk=True)
    assert admission.has_room(40)
    assert not admission.has_room(41)
    assert admission.remaining == 40


def test_one_that_is_larger_than_the_queue_is_taken_where_little_waits() -> None:
    """Small traffic, which there always is, would keep it out for ever; and it keeps no small one out."""
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


def test_without_a_limit_there_is_always_room() -> None:
    """Whatever is there."""
    admission = Admission(limit=None, unknown_s=1)
    admission.add(10**9)

    assert admission.has_room(10**9)


def test_the_wait_is_what_is_there_over_the_pace_of_lately() -> None:
    """Whatever it was long ago."""
    clock = Clock()
    admission = Admission(limit=1000, unknown_s=3, clock=clock)
    admission.add(600)

    assert admission.wait_s == 3
    work(admission, clock, seconds=20, pace=100)
    assert admission.wait_s == pytest.approx(6, rel=0.2)
    work(admission, clock, seconds=60, pace=20)
    assert admission.wait_s == pytest.approx(30, rel=0.2)


def test_a_model_that_had_little_to_do_is_not_slow() -> None:
    """It did ten tokens a second because no more were asked of it; of a thousand at once nothing is known yet."""
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


def test_a_pause_does_not_count_as_slowness() -> None:
    """Nothing was to be done."""
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


def test_a_wait_grows_while_nothing_is_done_to_an_hour_at_most() -> None:
    """As it does where a replica has died; headers are for people and programs to read."""
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


def test_what_is_dropped_is_not_done() -> None:
    """A client that leaves makes the others' wait shorter, and the server no faster."""
    clock = Clock()
    admission = Admission(limit=1000, unknown_s=3, clock=clock)
    admission.add(400)
    work(admission, clock, seconds=20, pace=100)
    admission.drop(300)

    assert admission.units == 100
    assert admission.wait_s == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(("units", "least", "most"), [(1, 1, 1), (600, 4, 8), (10**6, 60, 60)])
def test_who_is_refused_waits_between_a_second_and_a_minute(
    units: int, least: float, most: float
) -> None:
    """And not all equally long."""
    clock = Clock()
    admission = Admission(limit=None, unknown_s=3, clock=clock)
    admission.add(units)
    work(admission, clock, seconds=20, pace=100)

    waits = [admission.retry_after_s for _ in range(50)]

    assert least <= min(waits) <= max(waits) <= most
    assert math.isclose(least, most) == (len(set(waits)) == 1)
