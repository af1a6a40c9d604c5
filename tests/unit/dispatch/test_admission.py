import math
from dataclasses import dataclass

import pytest

from serve_app.dispatch.admission import Backlog


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def work(backlog: Backlog, clock: Clock, *, seconds: float, pace: float) -> None:
    """Do what is there at a steady pace, and keep it as full as it is."""
    for _ in range(round(seconds)):
        clock.now += 1
        backlog.finish(round(pace))
        backlog.add(round(pace))


def test_there_is_room_up_to_the_limit() -> None:
    """And none beyond it."""
    backlog = Backlog(limit=10, unknown_s=1)

    backlog.add(8)
    assert backlog.has_room(2)
    assert not backlog.has_room(3)
    assert backlog.remaining == 2
    backlog.add(8)
    assert backlog.remaining == 0


def test_one_finds_room_where_nothing_is() -> None:
    """However large it is, but not where nothing at all shall be taken."""
    assert Backlog(limit=10, unknown_s=1).has_room(11)
    assert not Backlog(limit=0, unknown_s=1).has_room(1)


def test_a_limit_is_shared_in_equal_parts() -> None:
    """Each gets an equal part of the work done, so whoever had more would wait longer."""
    backlog = Backlog(limit=90, unknown_s=1)
    backlog.add(20)

    backlog.sharers = 3
    assert backlog.has_room(10)
    assert not backlog.has_room(11)
    assert backlog.remaining == 10


def test_bulk_takes_no_room_from_others_and_is_refused_first() -> None:
    """A quarter is kept for what somebody waits for; whatever bulk there is is overtaken."""
    backlog = Backlog(limit=100, unknown_s=1)
    backlog.add(60)

    assert backlog.has_room(15, is_bulk=True)
    assert not backlog.has_room(16, is_bulk=True)
    backlog.add(15, is_bulk=True)
    assert not backlog.has_room(1, is_bulk=True)
    assert backlog.has_room(40)
    assert not backlog.has_room(41)
    assert backlog.remaining == 40


def test_one_that_is_larger_than_the_queue_is_taken_where_little_waits() -> None:
    """Small traffic, which there always is, would keep it out for ever; and it keeps no small one out."""
    backlog = Backlog(limit=100, unknown_s=1)
    backlog.add(50)

    assert backlog.has_room(300, is_bulk=True)
    backlog.add(300, is_bulk=True)
    assert backlog.has_room(50)
    assert not backlog.has_room(1, is_bulk=True)
    assert backlog.remaining == 50
    backlog.finish(200, is_bulk=True)
    backlog.drop(100, is_bulk=True)
    assert backlog.has_room(300, is_bulk=True)

    backlog.add(1)
    assert not backlog.has_room(300, is_bulk=True)


def test_without_a_limit_there_is_always_room() -> None:
    """Whatever is there."""
    backlog = Backlog(limit=None, unknown_s=1)
    backlog.add(10**9)

    assert backlog.has_room(10**9)


def test_the_wait_is_what_is_there_over_the_pace_of_lately() -> None:
    """Whatever it was long ago."""
    clock = Clock()
    backlog = Backlog(limit=1000, unknown_s=3, clock=clock)
    backlog.add(600)

    assert backlog.wait_s == 3
    work(backlog, clock, seconds=20, pace=100)
    assert backlog.wait_s == pytest.approx(6, rel=0.2)
    work(backlog, clock, seconds=60, pace=20)
    assert backlog.wait_s == pytest.approx(30, rel=0.2)


def test_a_model_that_had_little_to_do_is_not_slow() -> None:
    """It did ten tokens a second because no more were asked of it; of a thousand at once nothing is known yet."""
    clock = Clock()
    backlog = Backlog(limit=1000, unknown_s=3, clock=clock)
    backlog.add(10)
    work(backlog, clock, seconds=30, pace=10)
    assert backlog.wait_s == pytest.approx(1, rel=0.2)

    backlog.add(990)
    assert backlog.wait_s == 3
    clock.now += 1
    backlog.finish(200)

    assert backlog.wait_s == pytest.approx(4, rel=0.2)


def test_a_pause_does_not_count_as_slowness() -> None:
    """Nothing was to be done."""
    clock = Clock()
    backlog = Backlog(limit=1000, unknown_s=3, clock=clock)
    backlog.add(100)
    work(backlog, clock, seconds=20, pace=100)
    before = backlog.wait_s
    backlog.finish(100)
    assert backlog.wait_s == 0
    clock.now += 3600
    backlog.add(100)

    assert backlog.wait_s == pytest.approx(before, rel=0.1)


def test_a_wait_grows_while_nothing_is_done_to_an_hour_at_most() -> None:
    """As it does where a replica has died; headers are for people and programs to read."""
    clock = Clock()
    backlog = Backlog(limit=None, unknown_s=3, clock=clock)
    backlog.add(1000)
    work(backlog, clock, seconds=5, pace=100)
    before = backlog.wait_s
    clock.now += 5
    assert backlog.wait_s > 1.5 * before

    clock.now += 600
    assert backlog.wait_s == 3600

    clock.now += 600_000
    assert backlog.wait_s == 3600


def test_what_is_dropped_is_not_done() -> None:
    """A client that leaves makes the others' wait shorter, and the server no faster."""
    clock = Clock()
    backlog = Backlog(limit=1000, unknown_s=3, clock=clock)
    backlog.add(400)
    work(backlog, clock, seconds=20, pace=100)
    backlog.drop(300)

    assert backlog.units == 100
    assert backlog.wait_s == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(("units", "least", "most"), [(1, 1, 1), (600, 4, 8), (10**6, 60, 60)])
def test_who_is_refused_waits_between_a_second_and_a_minute(
    units: int, least: float, most: float
) -> None:
    """And not all equally long."""
    clock = Clock()
    backlog = Backlog(limit=None, unknown_s=3, clock=clock)
    backlog.add(units)
    work(backlog, clock, seconds=20, pace=100)

    waits = [backlog.retry_after_s for _ in range(50)]

    assert least <= min(waits) <= max(waits) <= most
    assert math.isclose(least, most) == (len(set(waits)) == 1)
