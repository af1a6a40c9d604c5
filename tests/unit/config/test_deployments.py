from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from serve_app.config.deployments import (
    DeploymentOptions,
    IngressOptions,
    ModelOptions,
    Settings,
    is_undocumented,
)

# Settings of all deployments.


def test_settings_are_frozen() -> None:
    options = DeploymentOptions()

    with pytest.raises(ValidationError, match="frozen"):
        options.num_replicas = 1  # type: ignore[misc]


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ValidationError) as error:
        DeploymentOptions.model_validate({"num_replica": 2})

    assert [finding["loc"] for finding in error.value.errors()] == [("num_replica",)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"old": 1}, "old is now called new"),
        ({"gone": 1}, "gone was removed: use a hammer"),
        ({"new": 1, "gone": 1}, "gone was removed: use a hammer"),
    ],
)
def test_a_former_setting_is_an_error_with_advice(settings: dict[str, int], words: str) -> None:
    class Tools(Settings):
        renamed: ClassVar[Mapping[str, str]] = {"old": "new"}
        removed: ClassVar[Mapping[str, str]] = {"gone": "use a hammer"}

        new: int = 0

    with pytest.raises(ValidationError) as error:
        Tools.model_validate(settings)

    assert words in str(error.value)
    assert Tools.model_validate({"new": 1}).new == 1


@pytest.mark.parametrize("value", [7, "name", ["name"], None])
def test_settings_that_are_no_mapping_are_rejected(value: object) -> None:
    with pytest.raises(ValidationError, match="valid dictionary"):
        DeploymentOptions.model_validate(value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("name", True), ("user_config", True), ("num_replicas", False), ("logging_config", False)],
)
def test_the_documentation_leaves_marked_settings_out(
    name: str,
    expected: bool,  # noqa: FBT001
) -> None:
    assert is_undocumented(DeploymentOptions.model_fields[name]) is expected


def test_other_extras_of_a_setting_do_not_hide_it() -> None:
    with_a_mapping = FieldInfo(json_schema_extra={"example": 1})
    with_a_function = FieldInfo(json_schema_extra=lambda schema: schema.clear())

    assert not is_undocumented(with_a_mapping)
    assert not is_undocumented(with_a_function)


# Options of a deployment.


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", "acme/tiny"),
        ("name", ""),
        ("num_replicas", 0),
        ("num_replicas", "many"),
        ("max_surge_percent", -1),
        ("max_surge_percent", 101),
        ("max_replicas_per_node", 0),
        ("rolling_update_percentage", 0),
        ("rolling_update_percentage", 101),
        ("graceful_shutdown_timeout_s", 0),
        ("health_check_period_s", 0),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        DeploymentOptions.model_validate({option: value})

    assert {finding["loc"][0] for finding in error.value.errors()} == {option}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_replicas", 1),
        ("num_replicas", "auto"),
        ("max_surge_percent", 0),
        ("rolling_update_percentage", 100.0),
        ("ray_actor_options", {"num_gpus": 0.5}),
        ("placement_group_bundles", [{"CPU": 1.0}]),
    ],
)
def test_a_valid_option_is_passed_to_ray_serve(option: str, value: object) -> None:
    options = DeploymentOptions.model_validate({option: value})

    assert options.given()[option] == value


def test_ray_serve_gets_only_its_own_options() -> None:
    options = DeploymentOptions.model_validate(
        {"name": "mine", "num_replicas": 2, "user_config": {"max_batch_tokens": 8}}
    )

    assert options.given() == {
        "num_replicas": 2,
        "max_surge_percent": 100,
    }


def test_num_replicas_excludes_autoscaling_config() -> None:
    with pytest.raises(ValidationError, match="not both"):
        DeploymentOptions.model_validate({"num_replicas": 2, "autoscaling_config": {}})


@pytest.mark.parametrize("others", [{}, {"num_replicas": "auto"}])
def test_autoscaling_config_goes_with_automatic_replicas(others: dict[str, Any]) -> None:
    autoscaling = {"min_replicas": 1, "max_replicas": 9}

    options = DeploymentOptions.model_validate({**others, "autoscaling_config": autoscaling})

    assert options.given()["autoscaling_config"] == autoscaling


@pytest.mark.parametrize(
    ("options", "scales_to_zero"),
    [
        ({}, False),
        ({"num_replicas": 1}, False),
        ({"autoscaling_config": {}}, False),
        ({"autoscaling_config": {"min_replicas": 1}}, False),
        ({"autoscaling_config": {"min_replicas": 0}}, True),
    ],
)
def test_a_deployment_without_a_minimum_scales_to_zero(
    options: dict[str, Any],
    scales_to_zero: bool,  # noqa: FBT001
) -> None:
    assert DeploymentOptions.model_validate(options).scales_to_zero is scales_to_zero


# Ray Serve's limits.


def test_a_model_has_ray_serve_s_limits() -> None:
    limits = {"max_ongoing_requests": 7, "max_queued_requests": 9}

    assert ModelOptions().given() == {
        "max_surge_percent": 100,
        "max_ongoing_requests": 2,
        "max_queued_requests": -1,
    }
    assert ModelOptions.model_validate(limits).given().items() >= limits.items()


@pytest.mark.parametrize("kind", [ModelOptions, IngressOptions])
@pytest.mark.parametrize(
    ("option", "value"),
    [("max_ongoing_requests", 0), ("max_queued_requests", -2), ("max_queued_requests", 0)],
)
def test_a_limit_that_ray_serve_rejects_is_named(
    kind: type[DeploymentOptions], option: str, value: int
) -> None:
    with pytest.raises(ValidationError) as error:
        kind.model_validate({option: value})

    assert {finding["loc"][0] for finding in error.value.errors()} == {option}


# Options of the ingress.


@pytest.mark.parametrize("user_config", [{}, {"max_batch_tokens": 8}])
def test_the_ingress_rejects_a_user_config(user_config: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="user_config: the ingress has no settings"):
        IngressOptions(user_config=user_config)


def test_the_ingress_has_ray_serve_s_limits_only_if_they_are_set() -> None:
    limits = {"max_ongoing_requests": 7, "max_queued_requests": 9}

    assert not IngressOptions().given().keys() & limits.keys()
    assert IngressOptions.model_validate(limits).given().items() >= limits.items()


def test_the_ingress_has_the_checks_of_a_deployment() -> None:
    with pytest.raises(ValidationError, match="not both"):
        IngressOptions(num_replicas=2, autoscaling_config={})
