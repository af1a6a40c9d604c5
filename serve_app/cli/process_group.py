"""Runs a command in its own session (setsid), and stops it and all processes that it started.

Processes are stopped by ID, never by name, and only if they belong to that session. This module
does not depend on Ray.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Session:
    """A command and all processes that it started. They can still run after the command has exited.

    Attributes:
        process: The command, which leads the session.
        log: The file that receives the session's output.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, command: Sequence[str], env: Mapping[str, str], log: Path) -> Self:
        """Start a command in a new session, with its output in the file `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, log)

    def has_ended(self) -> bool:
        """Return whether the command itself has exited. Processes that it started may still run."""
        return self.process.poll() is not None

    def output(self) -> str:
        """Return the output so far, without colour codes."""
        return COLOUR.sub("", self.log.read_text(errors="replace"))

    def stop(self, hurry: Callable[[], bool], *, grace_s: float, force_s: float = 5.0) -> list[int]:
        """Interrupt the command, then stop all other processes of the session with SIGTERM and SIGKILL.

        Args:
            hurry: Returns True to end the graceful shutdown early.
            grace_s: Seconds that the command has to exit after SIGINT.
            force_s: Seconds that the other processes have to exit after each of these steps: the
                command has exited, SIGTERM was sent, SIGKILL was sent.

        Returns:
            The IDs of processes that are still running.
        """
        self._send(signal.SIGINT, [self.process.pid])
        _wait(lambda: self.has_ended() or hurry(), grace_s)
        # Ray's processes exit on their own once the process that started them has exited.
        _wait(lambda: not self._members() or hurry(), force_s)
        for force in (signal.SIGTERM, signal.SIGKILL):
            self._send(force, self._members())
            _wait(lambda: not self._members(), force_s)
        survivors = self._members()
        self.has_ended()  # reaps the child, which would otherwise remain a zombie
        return survivors

    def _members(self) -> list[int]:
        return session_members(self.process.pid)

    @staticmethod
    def _send(signal_number: signal.Signals, pids: Iterable[int]) -> None:
        for pid in pids:
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                continue


def session_members(session: int) -> list[int]:
    """Return the IDs of a session's running processes, without zombies."""
    members = []
    for pid, state in _process_states():
        try:
            if not state.startswith("Z") and os.getsid(pid) == session:
                members.append(pid)
        except OSError:  # the process has exited in the meantime
            continue
    return members


def _process_states() -> Iterator[tuple[int, str]]:
    if sys.platform != "linux":
        command = ["ps", "-A", "-o", "pid=,stat="]
        table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for pid, state in (line.split() for line in table.splitlines()):
            yield int(pid), state
        return
    for folder in Path("/proc").glob("[0-9]*"):  # slim images have no `ps`
        try:
            # The state comes after the name, which is in parentheses and may contain any character.
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        yield int(folder.name), state


def _wait(done: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(_TICK_S)
