"""A command in a session of its own (setsid), so that whatever it starts is found and can be ended with it.

Processes are ended by their ids and never by a name: only those whose session is ours. Knows nothing of Ray.
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
    """A command and all that it started, while it runs and after it ended.

    Attributes:
        process: the command, leader of the session.
        log: the file that takes what it writes.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, command: Sequence[str], env: Mapping[str, str], log: Path) -> Self:
        """Start a command in a session of its own."""
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
        """Whether the command itself has ended."""
        return self.process.poll() is not None

    def output(self) -> str:
        """Return all that was written so far, without colours."""
        return COLOUR.sub("", self.log.read_text(errors="replace"))

    def stop(self, hurry: Callable[[], bool], *, grace_s: float, force_s: float = 5.0) -> list[int]:
        """Let the command shut down in order, then end whatever is left of its session.

        Args:
            hurry: whether the patience of the orderly way has ended early.
            grace_s: seconds that the command has to end after an interrupt.
            force_s: seconds for the rest of the session to follow it, and for each harder way.

        Returns:
            The ids of processes that outlived all of it.
        """
        self._tell(signal.SIGINT, [self.process.pid])
        _wait(lambda: self.has_ended() or hurry(), grace_s)
        # Ray's processes end by themselves when the one that started them has ended.
        _wait(lambda: not self._members() or hurry(), force_s)
        for harder in (signal.SIGTERM, signal.SIGKILL):
            self._tell(harder, self._members())
            _wait(lambda: not self._members(), force_s)
        left = self._members()
        self.has_ended()  # a child that ended stays in the table of processes until it is asked for
        return left

    def _members(self) -> list[int]:
        return session_members(self.process.pid)

    @staticmethod
    def _tell(message: signal.Signals, pids: Iterable[int]) -> None:
        for pid in pids:
            try:
                os.kill(pid, message)
            except ProcessLookupError:
                continue


def session_members(session: int) -> list[int]:
    """Return the ids of the processes of a session that have not ended."""
    members = []
    for pid, state in _process_states():
        try:
            if not state.startswith("Z") and os.getsid(pid) == session:
                members.append(pid)
        except OSError:  # it ended meanwhile
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
            # The name, in parentheses, may hold anything; the state follows it.
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        yield int(folder.name), state


def _wait(done: Callable[[], bool], patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while not done() and time.monotonic() < until:
        time.sleep(_TICK_S)
