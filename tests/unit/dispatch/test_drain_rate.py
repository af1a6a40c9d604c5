import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.dispatch.drain_rate import DrainRate
from tests.support.clock import Clock


def rate_of(clock: Clock, *, unknown_s: float = 3) -> DrainRate:
    """Make a rate of units that become pending now."""
    rate = DrainRate(unknown_s=unknown_s, clock=clock)
    rate.start(1)
    return rate


def wait_s(rate: DrainRate, pending: int) -> float:
    """Return the wait with this number of pending units."""
    rate.pending = pending
    return rate.wait_s


def retry_after_s(rate: DrainRate, pending: int) -> float:
    """Return `Retry-After` with this number of pending units."""
    rate.pending = pending
    return rate.retry_after_s


def finish(rate: DrainRate, units: int, *, pending: int) -> None:
    """Finish units of this number of pending units."""
    rate.pending = pending
    rate.finish(units)


def work(
    rate: DrainRate, clock: Clock, *, pending: int, seconds: float, pace: int, step_s: float = 1
) -> None:
    """Finish `pace` units in every step, while the number of pending units stays constant."""
    for _ in range(round(seconds / step_s)):
        clock.now += step_s
        finish(rate, pace, pending=pending)


def test_the_wait_is_pending_units_over_the_recent_drain_rate() -> None:
    clock = Clock()
    rate = rate_of(clock)

    assert wait_s(rate, 600) == 3
    work(rate, clock, pending=600, seconds=20, pace=100)
    assert wait_s(rate, 600) == pytest.approx(6, rel=0.2)
    work(rate, clock, pending=600, seconds=60, pace=20)
    assert wait_s(rate, 600) == pytest.approx(30, rel=0.2)


def test_a_lightly_loaded_model_does_not_look_slow() -> None:
    """It finished ten units a second because ten were pending; its rate at 1000 is unknown."""
    clock = Clock()
    rate = rate_of(clock)
    work(rate, clock, pending=10, seconds=30, pace=10)
    assert wait_s(rate, 10) == pytest.approx(1, rel=0.2)

    assert wait_s(rate, 1000) == 3
    clock.now += 1
    finish(rate, 200, pending=1000)

    assert wait_s(rate, 800) == pytest.approx(4, rel=0.2)


def test_the_wait_grows_to_an_hour_while_nothing_finishes() -> None:
    clock = Clock()
    rate = rate_of(clock)
    work(rate, clock, pending=1000, seconds=5, pace=100)
    before = wait_s(rate, 1000)
    clock.now += 5
    assert wait_s(rate, 1000) > 1.5 * before

    clock.now += 600
    assert wait_s(rate, 1000) == 3600

    clock.now += 600_000
    assert wait_s(rate, 1000) == 3600


@pytest.mark.parametrize(("units", "least", "most"), [(1, 1, 1), (600, 4, 8), (10**6, 60, 60)])
def test_retry_after_is_between_a_second_and_a_minute(
    units: int, least: float, most: float
) -> None:
    clock = Clock()
    rate = rate_of(clock)
    work(rate, clock, pending=units, seconds=20, pace=100)

    waits = [retry_after_s(rate, units) for _ in range(50)]

    assert least <= min(waits) <= max(waits) <= most
    has_jitter = len(set(waits)) > 1
    assert has_jitter == (least < most)


def test_a_longer_wait_is_reported_as_an_hour() -> None:
    clock = Clock()
    rate = rate_of(clock)

    work(rate, clock, pending=10**6, seconds=20, pace=100)

    assert wait_s(rate, 10**6) == 3600


def test_nothing_pending_means_no_wait() -> None:
    clock = Clock()
    rate = rate_of(clock)

    assert wait_s(rate, 0) == 0
    work(rate, clock, pending=100, seconds=20, pace=100)
    assert wait_s(rate, 0) == 0


def test_the_rate_is_unknown_for_a_quarter_of_a_second() -> None:
    clock = Clock()
    rate = rate_of(clock)

    work(rate, clock, pending=100, seconds=0.2, pace=10, step_s=0.1)
    assert wait_s(rate, 100) == 3
    work(rate, clock, pending=100, seconds=0.1, pace=10, step_s=0.1)

    assert wait_s(rate, 100) == pytest.approx(1, rel=0.05)


def test_units_that_finish_at_once_have_no_rate_yet() -> None:
    rate = rate_of(Clock())

    finish(rate, 100, pending=100)

    assert wait_s(rate, 100) == 3


def test_time_before_a_start_does_not_count() -> None:
    clock = Clock()
    rate = rate_of(clock)
    work(rate, clock, pending=100, seconds=20, pace=100)
    before = wait_s(rate, 100)

    rate.pending = 0
    clock.now += 3600
    rate.start(100)

    assert wait_s(rate, 100) == before


def test_work_of_a_minute_ago_hardly_counts() -> None:
    clock = Clock()
    rate = rate_of(clock)
    work(rate, clock, pending=1000, seconds=60, pace=1000)
    work(rate, clock, pending=1000, seconds=10, pace=10)
    recent = wait_s(rate, 1000)
    work(rate, clock, pending=1000, seconds=50, pace=10)

    assert recent < 3
    assert wait_s(rate, 1000) == pytest.approx(100, rel=0.3)


@given(
    pace=st.integers(1, 10_000),
    pending=st.integers(1, 10_000),
    step_s=st.floats(0.01, 0.5),
    waiting=st.integers(1, 10_000),
)
def test_at_a_steady_pace_the_wait_is_units_over_the_rate(
    pace: int, pending: int, step_s: float, waiting: int
) -> None:
    clock = Clock()
    rate = rate_of(clock)
    work(rate, clock, pending=pending, seconds=40, pace=pace, step_s=step_s)
    wait = wait_s(rate, waiting)

    if waiting <= 39 * pending:
        assert wait == pytest.approx(min(waiting * step_s / pace, 3600), rel=0.05)
    elif waiting >= 40 * pending:  # each second of ten seconds of work counts `pending / waiting`
        assert wait == 3


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1e6)), max_size=20),
    st.integers(0, 10**9),
)
def test_waits_are_bounded_after_any_history(
    history: list[tuple[int, int, float]], waiting: int
) -> None:
    clock = Clock()
    rate = rate_of(clock)
    for finished, others, seconds in history:
        clock.now += seconds
        finish(rate, finished, pending=finished + others)
        assert 0 <= wait_s(rate, waiting) <= 3600
        assert 1 <= retry_after_s(rate, waiting) <= 60


def test_the_jitter_of_retry_after_is_a_quarter() -> None:
    rate = rate_of(Clock(), unknown_s=20)

    waits = [retry_after_s(rate, 1) for _ in range(500)]

    assert 15 <= min(waits) < 17
    assert 23 < max(waits) <= 25


def test_units_are_pending_until_they_finish_or_are_dropped() -> None:
    rate = DrainRate(unknown_s=1)

    rate.start(10)
    rate.start(5)
    rate.finish(4)
    rate.drop(3)

    assert rate.pending == 8


def test_dropped_units_do_not_raise_the_rate() -> None:
    clock = Clock()
    rate = rate_of(clock)
    work(rate, clock, pending=400, seconds=20, pace=100)
    rate.pending = 400
    rate.drop(300)

    assert rate.wait_s == pytest.approx(1, rel=0.2)
