"""Ray Serve's deployment options, as they appear under `args:` of a Serve config file.

This module passes most options on unchanged, and Ray Serve validates them. It does not import Ray.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic.fields import FieldInfo

# Marks a setting that works but that the tables of settings leave out, because its default suits
# nearly everyone.
undocumented: Final = Field(json_schema_extra={"undocumented": True})


def is_undocumented(field: FieldInfo) -> bool:
    """Return whether the tables of settings leave the setting out."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and "undocumented" in extra


class Settings(BaseModel):
    """Base class of all settings.

    Settings are frozen. An unknown key is an error, and the error message names the key.

    Attributes:
        renamed: Maps a setting's former name to its current name.
        removed: Maps the name of a removed setting to the advice in its error message.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    renamed: ClassVar[Mapping[str, str]] = {}
    removed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _reject_former_names(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name in cls.renamed:
                raise ValueError(f"{name} is now called {cls.renamed[name]}")
            if name in cls.removed:
                raise ValueError(f"{name} was removed: {cls.removed[name]}")
        return value


def _check_queued_requests(value: int) -> int:
    if value == 0:
        raise ValueError("must be -1, for no limit, or at least 1")
    return value


# Ray Serve's `max_queued_requests`.
QueuedRequests = Annotated[int, Field(ge=-1), AfterValidator(_check_queued_requests)]


class DeploymentOptions(Settings):
    """Ray Serve's deployment options. An option that is not set keeps Ray Serve's default."""

    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.-]+$"), undocumented] = None
    num_replicas: Annotated[
        PositiveInt | Literal["auto"] | None,
        Field(description="Number of replicas, or `auto` for autoscaling."),
    ] = None
    autoscaling_config: Annotated[
        dict[str, Any] | None,
        Field(
            description="Ray Serve's autoscaling settings. Set either `autoscaling_config` or a fixed `num_replicas`."
        ),
    ] = None
    ray_actor_options: Annotated[
        dict[str, Any] | None,
        Field(description="Each replica's `num_cpus`, `num_gpus`, `resources` and `runtime_env`."),
    ] = None
    user_config: Annotated[dict[str, Any] | None, undocumented] = None
    max_surge_percent: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description=(
                "How many extra replicas a rollout may start before it stops old ones, as a "
                "percentage of the replica count, 0 to 100. If a new replica cannot start, the old "
                "replicas keep serving. With 0, old replicas are stopped first; use this on a "
                "cluster without spare capacity."
            ),
        ),
    ] = 100
    max_replicas_per_node: PositiveInt | None = None
    rolling_update_percentage: Annotated[float | None, Field(gt=0, le=100)] = None
    graceful_shutdown_timeout_s: PositiveFloat | None = None
    graceful_shutdown_wait_loop_s: PositiveFloat | None = None
    health_check_period_s: PositiveFloat | None = None
    health_check_timeout_s: PositiveFloat | None = None
    logging_config: dict[str, Any] | None = None
    request_router_config: dict[str, Any] | None = None
    placement_group_bundles: list[dict[str, float]] | None = None
    placement_group_strategy: str | None = None

    @model_validator(mode="after")
    def _check_scaling(self) -> Self:
        if (
            self.num_replicas is not None
            and self.autoscaling_config is not None
            and self.num_replicas != "auto"
        ):
            raise ValueError("set num_replicas or autoscaling_config, not both")
        return self

    @property
    def scales_to_zero(self) -> bool:
        """Whether an idle deployment scales down to zero replicas."""
        return (self.autoscaling_config or {}).get("min_replicas") == 0

    def given(self) -> dict[str, Any]:
        """Return the options to pass to Ray Serve, without `name` and `user_config`."""
        return self.model_dump(exclude_none=True, exclude={"name", "user_config"})


class ModelOptions(DeploymentOptions):
    """Options of a model's deployment."""

    max_ongoing_requests: Annotated[
        PositiveInt,
        Field(
            description=(
                "Maximum number of calls that a model replica holds at the same time, from all "
                "ingress replicas together. A call carries up to one token budget of inputs, from "
                "one or more requests. One call is computed; the others are ready. More requests "
                "wait in the ingress, within `max_queued_tokens`."
            )
        ),
    ] = 2
    max_queued_requests: Annotated[
        QueuedRequests,
        Field(
            description=(
                "Maximum number of calls that Ray Serve lets wait for a model replica, in each "
                "ingress replica. When the limit is reached, requests are rejected with 429. -1 "
                "removes the limit. Because the ingress sends no more calls than the replicas "
                "hold, few calls wait there."
            )
        ),
    ] = -1


class IngressOptions(DeploymentOptions):
    """Options of the ingress deployment.

    Set `http.max_concurrent_requests` to limit the requests in an ingress replica. Ray Serve's own
    limits reject requests in plain text.
    """

    max_ongoing_requests: Annotated[PositiveInt | None, undocumented] = None
    max_queued_requests: Annotated[QueuedRequests | None, undocumented] = None

    @model_validator(mode="after")
    def _reject_user_config(self) -> Self:
        if self.user_config is not None:
            raise ValueError(
                "user_config: the ingress has no settings that can change without a restart"
            )
        return self
