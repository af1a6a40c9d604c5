"""The autoscaling policy: the number of replicas follows the work, not the number of calls.

Ray Serve scales by ongoing calls. That says little here: a busy replica has two calls in flight,
however many tokens wait in the ingress. Replicas therefore report how busy they are and how much
work is waiting (`load_report.py`), and Ray Serve's controller passes the reports to this policy.
Ray Serve applies its own delays, factors and bounds to the result. Plain arithmetic: reads Ray
Serve's context by attribute and does not import Ray.
"""

from collections.abc import Mapping
from typing import Any, Final

# The names of a replica's two reported values in Ray Serve's context.
BUSY: Final = "busy"
WAITING_S: Final = "waiting_s"
# Hysteresis: scale down only if the remaining replicas keep 10 % headroom.
_SPARE = 0.1


class WorkPolicy:
    """Ray Serve's `policy_function` of a model's deployment.

    Args:
        target_utilization: the share of time that replicas should be busy, above 0, at most 1.
        target_wait_s: the seconds within which the waiting work should be done.
    """

    def __init__(self, *, target_utilization: float, target_wait_s: float) -> None:
        self._target_utilization = target_utilization
        self._target_wait_s = target_wait_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return the wanted number of replicas, before Ray Serve applies its delays and bounds.

        Args:
            context: Ray Serve's `AutoscalingContext`.
        """
        reports = context.aggregated_metrics or {}
        busy: Mapping[Any, float] = reports.get(BUSY, {})
        if not busy:  # no replica has reported yet
            return context.target_num_replicas, {}
        # Each replica reports all waiting work, so the maximum counts and not the sum.
        waiting_s = max(reports.get(WAITING_S, {}).values(), default=0.0)
        return self.replicas(sum(busy.values()), waiting_s, now=context.target_num_replicas), {}

    def replicas(self, busy: float, waiting_s: float, *, now: int) -> float:
        """Return how many replicas the work needs.

        Args:
            busy: the average number of replicas that were computing.
            waiting_s: the waiting work, in seconds of one replica's time.
            now: the current target number of replicas.
        """
        needed = busy / self._target_utilization + waiting_s / self._target_wait_s
        least_to_keep = (now - 1) * (1 - _SPARE)
        if needed > 0 and least_to_keep < needed < now:
            return now
        return needed
