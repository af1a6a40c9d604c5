import threading
import time

import pytest

from serve_app.deployments.model_thread import ModelThread, ModelThreadError


@pytest.fixture
def thread() -> ModelThread:
    """A started thread. It is a daemon, so a test need not stop it."""
    thread = ModelThread()
    thread.start()
    return thread


def test_all_functions_run_on_one_thread(thread: ModelThread) -> None:
    names = [thread.submit(lambda: threading.current_thread().name) for _ in range(3)]

    assert [name.result(5) for name in names] == ["model"] * 3


def test_an_exception_reaches_only_its_own_caller(thread: ModelThread) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    failing, next_one = thread.submit(fail), thread.submit(lambda: 1)

    assert isinstance(failing.exception(5), ZeroDivisionError)
    assert next_one.result(5) == 1
    thread.check(hang_timeout_s=5)


def test_a_cancelled_function_does_not_run(thread: ModelThread) -> None:
    ran, may_end = [], threading.Event()
    running = thread.submit(lambda: may_end.wait(5))
    cancelled = thread.submit(lambda: ran.append(1))

    was_cancelled = cancelled.cancel()
    may_end.set()

    assert running.result(5)
    assert thread.submit(lambda: "done").result(5) == "done"
    assert was_cancelled
    assert ran == []


def test_when_the_thread_dies_everything_queued_fails(thread: ModelThread) -> None:
    may_die = threading.Event()

    def die() -> None:
        may_die.wait(5)
        raise SystemExit

    dying, behind = thread.submit(die), thread.submit(lambda: 1)
    may_die.set()

    assert isinstance(dying.exception(5), SystemExit)
    assert isinstance(behind.exception(5), ModelThreadError)
    with pytest.raises(ModelThreadError, match="dead"):
        thread.submit(lambda: 1)
    with pytest.raises(ModelThreadError, match="dead"):
        thread.check(hang_timeout_s=5)


def test_a_thread_that_was_not_started_is_unhealthy() -> None:
    with pytest.raises(ModelThreadError):
        ModelThread().check(hang_timeout_s=5)


def test_stop_runs_what_was_already_submitted(thread: ModelThread) -> None:
    may_end = threading.Event()
    running, next_one = thread.submit(lambda: may_end.wait(5)), thread.submit(lambda: 1)

    thread.stop()
    may_end.set()

    assert running.result(5)
    assert next_one.result(5) == 1


def test_a_batch_that_runs_too_long_fails_the_check(thread: ModelThread) -> None:
    began, may_end = threading.Event(), threading.Event()

    def compute() -> None:
        began.set()
        may_end.wait(5)

    running = thread.submit(compute)
    assert began.wait(5)

    thread.check(hang_timeout_s=60)
    with pytest.raises(ModelThreadError, match="more than 0 s"):
        thread.check(hang_timeout_s=0)
    may_end.set()
    running.result(5)


def test_busy_seconds_include_the_running_function(thread: ModelThread) -> None:
    began, may_end = threading.Event(), threading.Event()

    def compute() -> None:
        began.set()
        may_end.wait(5)

    idle = thread.busy_seconds
    running = thread.submit(compute)
    assert began.wait(5)
    before = time.monotonic()
    while time.monotonic() - before < 0.002:
        pass
    while_running = thread.busy_seconds
    may_end.set()
    running.result(5)
    thread.submit(lambda: None).result(5)

    assert idle == 0
    assert while_running >= 0.002
    assert thread.busy_seconds >= while_running
