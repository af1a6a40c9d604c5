"""How many replicas the policy asks for, also through Ray Serve's own delays and bounds."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from serve_app.deployments.autoscaling import BUSY, WAITING_S, WorkPolicy

POLICY = WorkPolicy(target_utilization=0.7, target_wait_s=10)


def context(reports: list[tuple[float, float]], *, now: int) -> Any:
    """Return what Ray Serve's controller hands over: what each replica told, and how many there should be so far."""
    metrics = {
        BUSY: {number: busy for number, (busy, _) in enumerate(reports)},
        WAITING_S: {number: waiting for number, (_, waiting) in enumerate(reports)},
    }
    return SimpleNamespace(aggregated_metrics=metrics if reports else {}, target_num_replicas=now)


@pytest.mark.parametrize(
    ("busy", "waiting_s", "now", "expected"),
    [
        (0.0, 0.0, 1, 0),  # nothing to do: Ray Serve goes down to `min_replicas`
        (0.01, 0.0, 1, 1),
        (0.66, 0.2, 1, 1),
        (1.0, 0.0, 1, 2),  # one that is always busy
        (1.0, 40.0, 1, 6),  # and 40 s of work wait
        (2.09, 0.0, 3, 3),
        (4.0, 10.0, 4, 7),
        (0.1, 0.0, 4, 1),
    ],
)
def test_as_many_replicas_as_the_work_needs(
    busy: float, waiting_s: float, now: int, expected: int
) -> None:
    """So that they are busy for seven tenths of their time, and work off what waits in ten seconds."""
    wanted = POLICY.replicas(busy, waiting_s, now=now)

    assert -(-wanted // 1) == expected


def test_a_load_that_goes_up_and_down_a_little_moves_nothing() -> None:
    """Where one replica fewer would just do, all stay."""
    wanted = {POLICY.replicas(0.7 * load, 0, now=3) for load in (1.85, 1.95, 2.0, 2.05, 2.5, 2.95)}

    assert wanted == {3}
    assert POLICY.replicas(0.7 * 1.7, 0, now=3) < 2


def test_what_waits_is_counted_once_though_every_replica_tells_of_it() -> None:
    """And how busy they are is added up."""
    wanted, _ = POLICY(context([(1.0, 20.0), (0.8, 19.0)], now=2))

    assert wanted == pytest.approx(1.8 / 0.7 + 2.0)


def test_replicas_that_have_told_nothing_yet_move_nothing() -> None:
    """They have just started."""
    assert POLICY(context([], now=3)) == (3, {})


def test_ray_serve_takes_the_policy_as_the_application_names_it() -> None:
    """As a class with settings, which the controller makes one of."""
    named = {
        "policy_function": "serve_app.deployments.autoscaling:WorkPolicy",
        "policy_kwargs": {"target_utilization": 0.5, "target_wait_s": 5},
    }
    config = AutoscalingConfig.model_validate({"min_replicas": 0, "policy": named})

    policy = config.policy.get_policy()(**config.policy.policy_kwargs)

    assert policy(context([(0.5, 0.0)], now=1)) == (1.0, {})
