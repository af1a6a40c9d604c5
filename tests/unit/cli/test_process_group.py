import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.cli.process_group import Session, session_members

# The script blocks SIGINT until it waits for it, so that an early SIGINT is not lost.
OBEYS = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("\\x1b[36mup\\x1b[0m", flush=True)
signal.sigwait({signal.SIGINT})
print("bye", flush=True)
"""
# The child ignores signals and has its own process group, like Ray's workers.
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
    """Start a Python script and wait until it prints "up"."""
    session = Session.start([sys.executable, "-c", script], os.environ, tmp_path / "logs" / "log")
    wait_until(lambda: "up\n" in session.output())
    return session


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for at most 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        os.sched_yield()


def never() -> bool:
    """Never end the graceful shutdown early."""
    return False


def test_a_command_runs_in_its_own_session(tmp_path: Path) -> None:
    session = start(OBEYS, tmp_path)

    assert session_members(session.process.pid) == [session.process.pid]
    assert os.getpid() not in session_members(session.process.pid)
    assert session.stop(never, grace_s=20) == []


def test_output_has_no_colour_codes(tmp_path: Path) -> None:
    session = start(OBEYS, tmp_path)

    session.stop(never, grace_s=20)

    assert session.output() == "up\nbye\n"


def test_stop_lets_the_command_exit_by_itself(tmp_path: Path) -> None:
    session = start(OBEYS, tmp_path)
    assert not session.has_ended()

    session.stop(never, grace_s=20)

    assert session.has_ended()
    assert session.process.returncode == 0


def test_stop_kills_orphans_that_ignore_signals(tmp_path: Path) -> None:
    session = start(LEAVES_A_CHILD, tmp_path)
    wait_until(session.has_ended)
    assert len(session_members(session.process.pid)) == 1

    survivors = session.stop(never, grace_s=20, force_s=0.2)

    assert survivors == []


def test_stop_kills_a_stubborn_command_after_the_grace_time(tmp_path: Path) -> None:
    session = start(STUBBORN, tmp_path)

    survivors = session.stop(never, grace_s=0.2, force_s=1)

    assert survivors == []


@pytest.mark.timeout(30)
def test_hurry_ends_the_grace_time(tmp_path: Path) -> None:
    session = start(STUBBORN, tmp_path)

    survivors = session.stop(lambda: True, grace_s=600)

    assert survivors == []


def test_zombies_are_not_session_members(tmp_path: Path) -> None:
    session = Session.start([sys.executable, "-c", ""], os.environ, tmp_path / "log")
    os.waitid(os.P_PID, session.process.pid, os.WEXITED | os.WNOWAIT)

    assert session_members(session.process.pid) == []
    assert session.stop(never, grace_s=20) == []
