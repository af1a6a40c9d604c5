from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from serve_app.deployments.autoscaling import BUSY, WAITING_S, WorkPolicy

POLICY = WorkPolicy(target_utilization=0.7, target_wait_s=10)


def context(reports: list[tuple[float, float]], *, now: int) -> Any:
    """Return a context as Ray Serve's controller passes it: (busy, waiting_s) of each replica."""
    metrics = {
        BUSY: {number: busy for number, (busy, _) in enumerate(reports)},
        WAITING_S: {number: waiting for number, (_, waiting) in enumerate(reports)},
    }
    return SimpleNamespace(aggregated_metrics=metrics if reports else {}, target_num_replicas=now)


@pytest.mark.parametrize(
    ("busy", "waiting_s", "now", "expected"),
    [
        (0.0, 0.0, 1, 0),  # idle: Ray Serve scales down to `min_replicas`
        (0.01, 0.0, 1, 1),
        (0.66, 0.2, 1, 1),
        (1.0, 0.0, 1, 2),  # one replica that is always busy
        (1.0, 40.0, 1, 6),  # the same, with 40 s of waiting work
        (2.09, 0.0, 3, 3),
        (4.0, 10.0, 4, 7),
        (0.1, 0.0, 4, 1),
    ],
)
def test_replicas_follow_the_work(busy: float, waiting_s: float, now: int, expected: int) -> None:
    wanted = POLICY.replicas(busy, waiting_s, now=now)

    assert -(-wanted // 1) == expected


def test_small_changes_of_load_keep_the_number_of_replicas() -> None:
    wanted = {POLICY.replicas(0.7 * load, 0, now=3) for load in (1.85, 1.95, 2.0, 2.05, 2.5, 2.95)}

    assert wanted == {3}
    assert POLICY.replicas(0.7 * 1.7, 0, now=3) < 2


def test_busy_values_are_summed_and_waiting_work_counts_once() -> None:
    wanted, _ = POLICY(context([(1.0, 20.0), (0.8, 19.0)], now=2))

    assert wanted == pytest.approx(1.8 / 0.7 + 2.0)


def test_without_reports_the_number_of_replicas_stays() -> None:
    assert POLICY(context([], now=3)) == (3, {})


def test_ray_serve_imports_the_policy_by_its_name() -> None:
    reference = {
        "policy_function": "serve_app.deployments.autoscaling:WorkPolicy",
        "policy_kwargs": {"target_utilization": 0.5, "target_wait_s": 5},
    }
    config = AutoscalingConfig.model_validate({"min_replicas": 0, "policy": reference})

    policy = config.policy.get_policy()(**config.policy.policy_kwargs)

    assert policy(context([(0.5, 0.0)], now=1)) == (1.0, {})
