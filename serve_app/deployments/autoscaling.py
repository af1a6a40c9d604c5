"""The autoscaling policy: the number of replicas follows the work, not the number of calls.

By default, Ray Serve scales by the number of ongoing calls. That number says little here: a busy
replica has two calls in flight, however many tokens are pending in the ingress. Replicas therefore
report how busy they are and how much work is pending (`load_report.py`). Ray Serve's controller
passes these reports to the policy, and applies its own delays, factors and bounds to the result.

This module does not import Ray. It only reads attributes of Ray Serve's context.
"""

from collections.abc import Mapping
from typing import Any, Final

# The keys of the two values that a replica reports (`LoadReport.report`), in Ray Serve's context.
BUSY: Final = "busy"
WAITING_S: Final = "waiting_s"
# Hysteresis: scale down only if the remaining replicas keep 10 % headroom.
_SPARE = 0.1


class WorkPolicy:
    """Ray Serve's `policy_function` of a model's deployment.

    Args:
        target_utilization: the target fraction of time, above 0 and up to 1, that each replica is
            busy.
        target_wait_s: the seconds within which the pending work should be finished.
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
        # Each replica reports the pending work of all ingress replicas, so take the maximum of the
        # reports and not their sum.
        waiting_s = max(reports.get(WAITING_S, {}).values(), default=0.0)
        return self.replicas(sum(busy.values()), waiting_s, now=context.target_num_replicas), {}

    def replicas(self, busy: float, waiting_s: float, *, now: int) -> float:
        """Return how many replicas the work needs.

        Args:
            busy: the average number of replicas that were busy at the same time.
            waiting_s: the pending work, in seconds of one replica's time.
            now: the current target number of replicas.
        """
        needed = busy / self._target_utilization + waiting_s / self._target_wait_s
        least_to_keep = (now - 1) * (1 - _SPARE)
        if needed > 0 and least_to_keep < needed < now:
            return now
        return needed
