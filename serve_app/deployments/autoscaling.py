"""How many replicas a model should have: as many as its work needs, whatever the number of requests it comes in.

Ray Serve counts calls, of which a busy replica has two under way however much waits in the ingress. So replicas tell
how busy they are and how much waits for them (`workload.py`), and Ray Serve's controller asks this policy; its delays,
factors and bounds are applied around it. Plain arithmetic: knows Ray Serve's context by its attributes only.
"""

from collections.abc import Mapping
from typing import Any, Final

# What a replica reports, by the names under which the context has it.
BUSY: Final = "busy"
WAITING_S: Final = "waiting_s"
# Replicas go only when those that stay would have this share to spare: else each wave of load would move one.
_SPARE = 0.1


class WorkPolicy:
    """Ray Serve's `policy_function` of a model's deployment.

    Args:
        target_utilization: how much of their time replicas should be busy, above 0 and at most 1.
        target_wait_s: seconds in which what waits should be worked off.
    """

    def __init__(self, *, target_utilization: float, target_wait_s: float) -> None:
        self._target_utilization = target_utilization
        self._target_wait_s = target_wait_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return how many replicas there should be, before Ray Serve's own delays and bounds.

        Args:
            context: Ray Serve's `AutoscalingContext`.
        """
        reports = context.aggregated_metrics or {}
        busy: Mapping[Any, float] = reports.get(BUSY, {})
        if not busy:  # replicas that have started and told nothing yet
            return context.target_num_replicas, {}
        # Each tells of all that waits, so it is not added up.
        waiting_s = max(reports.get(WAITING_S, {}).values(), default=0.0)
        return self.replicas(sum(busy.values()), waiting_s, now=context.target_num_replicas), {}

    def replicas(self, busy: float, waiting_s: float, *, now: int) -> float:
        """Return how many replicas the work needs.

        Args:
            busy: how many replicas were computing, on average.
            waiting_s: what waits, in seconds of one replica's work.
            now: how many there should be so far.
        """
        needed = busy / self._target_utilization + waiting_s / self._target_wait_s
        return now if needed and (now - 1) * (1 - _SPARE) < needed < now else needed
