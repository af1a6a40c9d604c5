"""Ray Serve's deployment options, as they appear under `args:` of a Serve config file.

This module passes most options on unchanged, and Ray Serve validates them. It does not import Ray.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic.fields import FieldInfo

# Marks an escape hatch: a working setting that the documentation leaves out, because the derived
# value suits nearly everyone.
undocumented: Final = Field(json_schema_extra={"undocumented": True})


def is_undocumented(field: FieldInfo) -> bool:
    """Return whether the documentation leaves the setting out."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and "undocumented" in extra


class Settings(BaseModel):
    """Base class of all settings: frozen, and an unknown key is an error that names the key.

    Attributes:
        renamed: Maps the former name of a setting to its current name.
        removed: Maps a removed setting to the advice that its error message gives.
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


class DeploymentOptions(Settings):
    """Ray Serve's deployment options. An option that is not set keeps Ray Serve's default."""

    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.-]+$"), undocumented] = None
    num_replicas: Annotated[
        PositiveInt | Literal["auto"] | None,
        Field(description="Number of replicas, or `auto`."),
    ] = None
    autoscaling_config: Annotated[
        dict[str, Any] | None,
        Field(
            description="Ray Serve's autoscaling settings. Set these or a fixed `num_replicas`, not both."
        ),
    ] = None
    max_ongoing_requests: Annotated[
        PositiveInt, Field(description="Maximum number of concurrent calls per replica.")
    ] = 512
    max_queued_requests: Annotated[
        int,
        Field(
            ge=-1,
            description=(
                "Maximum number of calls that wait for a replica. Further requests are rejected "
                "with 429. -1 removes the limit."
            ),
        ),
    ] = 1024
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
                "Percentage of the replicas that a rollout starts before it stops old ones. If a "
                "new replica cannot start, the old ones keep serving. 0 stops old replicas first, "
                "for clusters without spare capacity."
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


class IngressOptions(DeploymentOptions):
    """Options of the ingress deployment.

    The server enforces both request limits itself, so that a rejected request gets this server's
    429.
    """

    max_ongoing_requests: Annotated[
        PositiveInt,
        Field(description="Maximum number of requests that one ingress replica processes at once."),
    ] = 1000
    max_queued_requests: Annotated[
        int,
        Field(
            ge=-1,
            description=(
                "Maximum number of further requests that wait in one ingress replica. Requests "
                "beyond that are rejected with 429. -1 removes the limit."
            ),
        ),
    ] = 1000

    @model_validator(mode="after")
    def _reject_user_config(self) -> Self:
        if self.user_config is not None:
            raise ValueError(
                "user_config: the ingress has no settings that can change without a restart"
            )
        return self

    @property
    def max_requests(self) -> int | None:
        """Maximum number of embedding requests in one ingress replica, or None for no limit."""
        if self.max_queued_requests < 0:
            return None
        return self.max_ongoing_requests + self.max_queued_requests
