import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.cli.process_group import Session, session_members

# Interrupts wait until it waits for them, so that one that comes early is not lost and does not break a line.
OBEYS = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("\\x1b[36mup\\x1b[0m", flush=True)
signal.sigwait({signal.SIGINT})
print("bye", flush=True)
"""
# A command that leaves its stubborn child in a process group of its own, as Ray leaves its workers.
LEAVES_A_CHILD = """
import subprocess, sys
CHILD = '''
import signal
for ignored in (signal.SIGINT, signal.SIGTERM):
    signal.signal(ignored, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
'''
subprocess.Popen([sys.executable, "-c", CHILD], process_group=0)
"""
STUBBORN = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""


def start(script: str, tmp_path: Path) -> Session:
    """Start a Python script and wait until it says that it is up."""
    session = Session.start([sys.executable, "-c", script], os.environ, tmp_path / "logs" / "log")
    wait_until(lambda: "up\n" in session.output())
    return session


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, but not for ever."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not come"
        os.sched_yield()


def never() -> bool:
    """Say that there is no hurry."""
    return False


def test_a_command_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    """Its session holds it, and not us."""
    session = start(OBEYS, tmp_path)

    assert session_members(session.process.pid) == [session.process.pid]
    assert os.getpid() not in session_members(session.process.pid)
    assert session.stop(never, grace_s=20) == []


def test_what_a_command_writes_is_kept_without_colours(tmp_path: Path) -> None:
    """The log is read by people."""
    session = start(OBEYS, tmp_path)

    session.stop(never, grace_s=20)

    assert session.output() == "up\nbye\n"


def test_a_command_may_end_in_its_own_way(tmp_path: Path) -> None:
    """It is interrupted, as by Ctrl-C, and not ended by force."""
    session = start(OBEYS, tmp_path)
    assert not session.has_ended()

    session.stop(never, grace_s=20)

    assert session.has_ended()
    assert session.process.returncode == 0


def test_what_a_command_left_behind_is_ended_too(tmp_path: Path) -> None:
    """Though its parent is gone, its group is another, and it ignores both polite signals."""
    session = start(LEAVES_A_CHILD, tmp_path)
    wait_until(session.has_ended)
    assert len(session_members(session.process.pid)) == 1

    left = session.stop(never, grace_s=20, force_s=0.2)

    assert left == []


def test_a_stubborn_command_is_ended_when_patience_ends(tmp_path: Path) -> None:
    """After the time that it has to end in order."""
    session = start(STUBBORN, tmp_path)

    left = session.stop(never, grace_s=0.2, force_s=1)

    assert left == []


@pytest.mark.timeout(30)
def test_hurry_ends_the_patience(tmp_path: Path) -> None:
    """A second Ctrl-C does not wait for the first to be obeyed."""
    session = start(STUBBORN, tmp_path)

    left = session.stop(lambda: True, grace_s=600)

    assert left == []


def test_a_process_that_ended_is_no_member(tmp_path: Path) -> None:
    """Also as long as its parent has not asked for it, or never does."""
    session = Session.start([sys.executable, "-c", ""], os.environ, tmp_path / "log")
    os.waitid(os.P_PID, session.process.pid, os.WEXITED | os.WNOWAIT)

    assert session_members(session.process.pid) == []
    assert session.stop(never, grace_s=20) == []
