"""The rounds: each contender in turn is started, checked, loaded with each workload, and stopped.

One server runs at a time, so that none disturbs another; a round goes through all of them, so that what drifts on the
machine meets all alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.compare.ceiling import CeilingError, in_another_process
from benchmarks.compare.check import Vectors, WrongVectorsError, check_vectors, reference, sample
from benchmarks.compare.contenders import (
    MODEL,
    THREADS,
    Contender,
    StartFailedError,
    model_directory,
    post,
    running,
)
from benchmarks.compare.report import Measurement
from benchmarks.load import PATIENCE_S, LoadError, Rate, send
from benchmarks.workloads import Requests, body


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how often each contender is started.
        seconds: counted seconds of each load.
        warm_s: seconds of load before those.
        contenders: who is measured.
        requests: with what.
    """

    rounds: int
    seconds: float
    warm_s: float
    contenders: Sequence[Contender]
    requests: Sequence[Requests]

    def requests_for(self, contender: Contender) -> list[Requests]:
        """Return the workloads that are for this contender."""
        sleeps = contender.kind == "sleeping"
        return [
            one
            for one in self.requests
            if one.workload.sleeping == sleeps
            and (not contender.workloads or one.workload.name in contender.workloads)
        ]


class Rounds:
    """Runs a plan.

    Args:
        plan: what to do.
        say: is told how it is coming along.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._sample = sample(plan.requests)
        self._expected: Vectors = reference(self._sample, model_directory())

    def run(self) -> Iterator[Measurement]:
        """Measure everything; what does not come up or fails is said and left out."""
        for number in range(1, self._plan.rounds + 1):
            for contender in filter(self._plan.requests_for, self._plan.contenders):
                self._say(f"round {number} of {self._plan.rounds}: {contender.title}")
                measure = self._ceiling if contender.kind == "ceiling" else self._server
                try:
                    for workload, rate in measure(contender):
                        self._say(_told(workload, rate))
                        yield Measurement(contender.name, workload, number, rate)
                except (StartFailedError, CeilingError) as error:
                    self._say(f"  left out of this round: {error}")

    def _server(self, contender: Contender) -> Iterator[tuple[str, Rate]]:
        with running(contender) as port:
            if contender.kind != "sleeping" and not self._gives_right_vectors(contender, port):
                return
            for requests in self._plan.requests_for(contender):
                try:
                    rate = send(
                        requests, port, warm_s=self._plan.warm_s, seconds=self._plan.seconds
                    )
                    _settle(port)
                except (LoadError, OSError) as error:
                    self._say(f"  left out of this round: {error}")
                else:
                    yield requests.workload.name, rate

    def _gives_right_vectors(self, contender: Contender, port: int) -> bool:
        try:
            cosine = check_vectors(contender, port, self._sample, self._expected)
        except (WrongVectorsError, OSError) as error:
            self._say(f"  not measured: {error}")
            return False
        self._say(f"  vectors checked: least cosine to sentence-transformers {cosine:.6f}")
        return True

    def _ceiling(self, contender: Contender) -> Iterator[tuple[str, Rate]]:
        """Measure the encoder in process, whose vectors the project's own tests compare."""
        answer = in_another_process(
            str(model_directory()),
            contender.model,
            self._plan.requests_for(contender),
            threads=THREADS,
            seconds=self._plan.seconds,
        )
        for workload, measured in answer.items():
            yield workload, Rate(**measured["rate"])


def _settle(port: int) -> None:
    """Wait until the requests that the clients broke off are worked off: one more is answered after them."""
    post(port, body(["a text"], model=MODEL["name"]), timeout_s=PATIENCE_S)


def _told(workload: str, rate: Rate) -> str:
    return f"  {workload:6} {rate.requests_per_s:9.2f} requests/s, median {rate.p50_ms:.1f} ms"
