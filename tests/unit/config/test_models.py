from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config.deployments import (
    IngressOptions,
    ModelOptions,
    Settings,
    is_undocumented,
)
from serve_app.config.http import HttpConfig
from serve_app.config.models import BatchSettings, ModelConfig, ServerConfig

# Ray Serve's documentation describes these options.
PASSED_TO_RAY_SERVE = {
    "max_replicas_per_node",
    "rolling_update_percentage",
    "graceful_shutdown_timeout_s",
    "graceful_shutdown_wait_loop_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "logging_config",
    "request_router_config",
    "placement_group_bundles",
    "placement_group_strategy",
}
MODEL = {"name": "acme/tiny", "source": "acme/tiny"}


def server(*models: dict[str, Any], **others: Any) -> ServerConfig:
    """Validate the settings under `args:`."""
    return ServerConfig.model_validate({"models": [*models], **others})


def test_a_model_needs_only_a_name_and_a_source() -> None:
    config = server(MODEL)

    assert config.http == HttpConfig()
    assert config.ingress == IngressOptions()
    assert config.models[0].deployment == ModelOptions()


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({"models": []}, "models"),
        ({"models": [MODEL], "htpp": {}}, "htpp"),
        ({"models": [MODEL], "http": {"error_format": "xml"}}, "http.error_format"),
        ({"models": [{"name": "a"}]}, "models.0.source"),
        ({"models": [{**MODEL, "dytpe": "float16"}]}, "models.0.dytpe"),
        ({"models": [{**MODEL, "device": "gpu"}]}, "models.0.device"),
        ({"models": [{**MODEL, "deployment": {"num_replica": 2}}]}, "models.0.deployment.num_replica"),
        ({"models": [{**MODEL, "deployment": {"user_config": {"max_batch": 1}}}]}, "max_batch"),
        ({"models": [MODEL], "ingress": {"user_config": {}}}, "user_config"),
        ({"models": [{**MODEL, "target_utilization": 1.1}]}, "models.0.target_utilization"),
        ({"models": [{**MODEL, "deployment": {"autoscaling_config": {"target_ongoing_requests": 2}}}]},
         "target_ongoing_requests"),
    ],
)  # fmt: skip
def test_an_invalid_setting_is_named(args: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as error:
        ServerConfig.model_validate(args)

    assert key in str(error.value)


@pytest.mark.parametrize(
    "models",
    [
        [MODEL, {**MODEL}],
        [MODEL, {"name": "other", "source": "-", "aliases": ["acme/tiny"]}],
        [{**MODEL, "aliases": ["x"]}, {"name": "other", "source": "-", "aliases": ["x"]}],
    ],
)
def test_models_cannot_share_a_name(models: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match="used twice"):
        server(*models)


def test_an_alias_may_repeat_the_model_name() -> None:
    config = server({**MODEL, "aliases": ["acme/tiny", "tiny"]})

    assert config.models[0].aliases == ("acme/tiny", "tiny")


def test_deployments_cannot_share_a_name() -> None:
    """Two model names can differ only in characters that Ray Serve does not allow."""
    with pytest.raises(ValidationError, match="deployment name"):
        server({**MODEL, "name": "a/b"}, {**MODEL, "name": "a:b"})


def test_a_model_cannot_be_named_like_the_ingress() -> None:
    with pytest.raises(ValidationError, match="deployment name"):
        server({**MODEL, "name": "ingress"})


def test_a_deployment_is_named_after_its_model() -> None:
    made = ModelConfig(name="acme/Tiny v1.5", source="-")
    set_by_hand = ModelConfig.model_validate({**MODEL, "deployment": {"name": "mine"}})

    assert made.deployment_name == "acme--Tiny--v1.5"
    assert set_by_hand.deployment_name == "mine"


def test_user_config_overrides_batch_settings() -> None:
    model = ModelConfig.model_validate(
        {**MODEL, "max_batch_tokens": 100, "deployment": {"user_config": {"max_batch_tokens": 200}}}
    )

    settings = BatchSettings.model_validate(model.batch_settings)

    assert settings.max_batch_tokens == 200
    assert settings.max_queued_tokens == 200_000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            {"models": [{**MODEL, "wedged_after_s": 1}]},
            "wedged_after_s is now called hang_timeout_s",
        ),
        (
            {"models": [{**MODEL, "max_batch_size": 1}]},
            "max_batch_size was removed: it is derived from deployment.max_ongoing_requests",
        ),
    ],
)
def test_a_former_name_is_an_error_with_the_new_name(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        ServerConfig.model_validate(args)

    assert words in str(error.value)


def settings_classes() -> list[type[Settings]]:
    """Return all subclasses of `Settings`, direct and indirect."""
    kinds = Settings.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()  # the loop visits them too
    return kinds


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_every_setting_has_a_description(kind: type[Settings]) -> None:
    undescribed = {
        name
        for name, field in kind.model_fields.items()
        if not field.description and not is_undocumented(field)
    }

    assert undescribed <= PASSED_TO_RAY_SERVE | {"http", "ingress"}
