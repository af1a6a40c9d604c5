"""Run the rounds: start each contender, check its vectors, send each workload, stop it.

Only one server runs at a time, so that servers do not disturb each other. Each round covers all contenders, so
that drift in the machine's speed affects them all equally.
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
    """The parameters of a comparison.

    Attributes:
        rounds: number of times to start each contender.
        seconds: seconds to measure each workload.
        warm_s: seconds of load before each measurement.
        contenders: the servers and ceilings to measure.
        requests: the workloads to send.
    """

    rounds: int
    seconds: float
    warm_s: float
    contenders: Sequence[Contender]
    requests: Sequence[Requests]

    def requests_for(self, contender: Contender) -> list[Requests]:
        """Return the workloads that apply to this contender."""
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
        plan: what to measure.
        print_status: called with each progress message.
    """

    def __init__(self, plan: Plan, print_status: Callable[[str], None]) -> None:
        self._plan = plan
        self._print_status = print_status
        self._sample = sample(plan.requests)
        self._expected: Vectors = reference(self._sample, model_directory())

    def run(self) -> Iterator[Measurement]:
        """Measure everything. A contender that fails to start or to respond is reported and skipped."""
        for number in range(1, self._plan.rounds + 1):
            for contender in filter(self._plan.requests_for, self._plan.contenders):
                self._print_status(f"round {number} of {self._plan.rounds}: {contender.title}")
                measure = self._ceiling if contender.kind == "ceiling" else self._server
                try:
                    for workload, rate in measure(contender):
                        self._print_status(_format_rate(workload, rate))
                        yield Measurement(contender.name, workload, number, rate)
                except (StartFailedError, CeilingError) as error:
                    self._print_status(f"  skipped in this round: {error}")

    def _server(self, contender: Contender) -> Iterator[tuple[str, Rate]]:
        with running(contender) as port:
            if contender.kind != "sleeping" and not self._has_correct_vectors(contender, port):
                return
            for requests in self._plan.requests_for(contender):
                try:
                    rate = send(
                        requests, port, warm_s=self._plan.warm_s, seconds=self._plan.seconds
                    )
                    _settle(port)
                except (LoadError, OSError) as error:
                    self._print_status(f"  skipped in this round: {error}")
                else:
                    yield requests.workload.name, rate

    def _has_correct_vectors(self, contender: Contender, port: int) -> bool:
        try:
            cosine = check_vectors(contender, port, self._sample, self._expected)
        except (WrongVectorsError, OSError) as error:
            self._print_status(f"  not measured: {error}")
            return False
        self._print_status(
            f"  vectors checked: lowest cosine similarity to sentence-transformers is {cosine:.6f}"
        )
        return True

    def _ceiling(self, contender: Contender) -> Iterator[tuple[str, Rate]]:
        """Measure the in-process encoder. The project's own tests check its vectors."""
        results = in_another_process(
            str(model_directory()),
            contender.model,
            self._plan.requests_for(contender),
            threads=THREADS,
            seconds=self._plan.seconds,
        )
        for workload, result in results.items():
            yield workload, Rate(**result["rate"])


def _settle(port: int) -> None:
    """Wait until the server has finished the requests that the clients abandoned.

    The server answers one more request only after them.
    """
    post(port, body(["a text"], model=MODEL["name"]), timeout_s=PATIENCE_S)


def _format_rate(workload: str, rate: Rate) -> str:
    return f"  {workload:6} {rate.requests_per_s:9.2f} requests/s, median {rate.p50_ms:.1f} ms"
