"""The thread that owns a model. It runs batches one after the other, and its health can be checked.

It is a plain thread and not an executor, because the health check needs to know whether the thread
is alive and how long the current batch has been running. This module does not depend on Ray or on
the encoder.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")
Work = Callable[[], Any]

_DEAD = "the model's thread is dead"


class ModelThreadError(Exception):
    """The thread is dead, or has been running one batch for too long."""


class ModelThread:
    """Runs functions one after the other on a thread of its own.

    The constructor does not start the thread; `start` does.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Work] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._ended = False
        # Guards `_ended`: nothing may be queued after the queue was emptied for the last time.
        self._end_lock = threading.Lock()
        # The total seconds spent in finished functions, and the start time of the running function
        # (None if none runs). Both values are in one attribute, so that other threads always see
        # them change together. Otherwise `busy_seconds` could decrease.
        self._busy: tuple[float, float | None] = (0.0, None)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end after the functions already submitted. Return without waiting."""
        self._queue.put(None)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Queue a function.

        If the thread ends before it runs the function, the future raises `ModelThreadError`.

        Raises:
            ModelThreadError: the thread is dead.
        """
        future: Future[Result] = Future()
        with self._end_lock:
            if self._ended:
                raise ModelThreadError(_DEAD)
            self._queue.put((future, work))
        return future

    @property
    def busy_seconds(self) -> float:
        """The total seconds spent running functions, including the current one."""
        done, since = self._busy
        if since is None:
            return done
        return done + time.monotonic() - since

    def check(self, *, hang_timeout_s: float) -> None:
        """Check that the thread is alive and not stuck.

        Raises:
            ModelThreadError: the thread is dead, or has been running one function for more than
                `hang_timeout_s` seconds.
        """
        if self._ended or not self._thread.is_alive():
            raise ModelThreadError(_DEAD)
        _, since = self._busy
        if since is not None and time.monotonic() - since > hang_timeout_s:
            raise ModelThreadError(f"a batch has been running for more than {hang_timeout_s:g} s")

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                future, work = item
                if future.set_running_or_notify_cancel() and not self._compute(future, work):
                    return
        finally:
            self._end()

    def _compute(self, future: Future[Any], work: Work) -> bool:
        """Run one function. Return False if the thread must end: after SystemExit, for example."""
        done, started = self._busy[0], time.monotonic()
        self._busy = (done, started)
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
            return isinstance(error, Exception)
        finally:
            self._busy = (done + time.monotonic() - started, None)
        return True

    def _end(self) -> None:
        with self._end_lock:
            self._ended = True
        while not self._queue.empty():
            item = self._queue.get()
            if item is not None and item[0].set_running_or_notify_cancel():
                item[0].set_exception(ModelThreadError(_DEAD))
