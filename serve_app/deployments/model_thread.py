"""The one thread that owns a model: batches go in, results come out, and its health can be asked.

A thread and not a pool: whether it is alive and since when it has been computing must be known. Knows nothing of Ray
or of what a batch is.
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
    """The thread is dead, or has computed one batch for too long."""


class ModelThread:
    """Runs functions one after the other on a thread of its own.

    The constructor starts nothing; `start` does.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Work] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._ended = False
        self._ending = (
            threading.Lock()
        )  # nothing may be queued once the queue has been emptied for good
        # Seconds of the functions that are done, and when the one that runs began. One attribute, so that another
        # thread sees both before a change or both after it, and never a sum that falls.
        self._busy: tuple[float, float | None] = (0.0, None)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what it has been given; returns at once."""
        self._queue.put(None)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Run a function after those before it.

        Raises:
            ModelThreadError: the thread is dead; the future of a function that it no longer comes to raises the same.
        """
        future: Future[Result] = Future()
        with self._ending:
            if self._ended:
                raise ModelThreadError(_DEAD)
            self._queue.put((future, work))
        return future

    @property
    def busy_seconds(self) -> float:
        """Seconds spent computing since the start."""
        done, since = self._busy
        return done + (time.monotonic() - since if since is not None else 0.0)

    def check(self, *, hang_timeout_s: float) -> None:
        """Return if all is well.

        Raises:
            ModelThreadError: the thread is dead, or its function has been running for longer than that.
        """
        if self._ended or not self._thread.is_alive():
            raise ModelThreadError(_DEAD)
        _, since = self._busy
        if since is not None and time.monotonic() - since > hang_timeout_s:
            raise ModelThreadError(f"a batch has been computing for more than {hang_timeout_s:g} s")

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                future, work = item
                if future.set_running_or_notify_cancel() and not self._compute(future, work):
                    return
        finally:
            self._end()

    def _compute(self, future: Future[Any], work: Work) -> bool:
        """Run one function; return whether the thread lives on, which SystemExit and the like do not allow."""
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
        with self._ending:
            self._ended = True
        while not self._queue.empty():
            item = self._queue.get()
            if item is not None and item[0].set_running_or_notify_cancel():
                item[0].set_exception(ModelThreadError(_DEAD))
