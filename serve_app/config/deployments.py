"""Ray Serve's own options of a deployment, as `args:` of the Serve config file takes them: by Ray Serve's names.

Carried and not understood: Ray Serve checks them. Knows nothing of Ray.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic.fields import FieldInfo

# An escape hatch: a setting that works and is in no table, because nearly everyone is served by what is derived.
undocumented: Final = Field(json_schema_extra={"undocumented": True})


def is_undocumented(field: FieldInfo) -> bool:
    """Return whether a setting is an escape hatch."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and "undocumented" in extra


class Settings(BaseModel):
    """Base of all settings: frozen, and a key that does not exist is an error that names it.

    Attributes:
        renamed: the new name of each setting that was renamed.
        removed: for each setting that was removed, what to do instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    renamed: ClassVar[Mapping[str, str]] = {}
    removed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _names_are_current(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if name in cls.renamed:
                raise ValueError(f"{name} is now called {cls.renamed[name]}")
            if name in cls.removed:
                raise ValueError(f"{name} was removed: {cls.removed[name]}")
        return given


class DeploymentOptions(Settings):
    """Ray Serve's own options of a deployment, under their own names; what is not set keeps its default."""

    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.-]+$"), undocumented] = None
    num_replicas: Annotated[
        PositiveInt | Literal["auto"] | None,
        Field(description="Fixed number of replicas, or `auto`."),
    ] = None
    autoscaling_config: Annotated[
        dict[str, Any] | None,
        Field(description="Ray Serve's `autoscaling_config`, instead of `num_replicas`."),
    ] = None
    max_ongoing_requests: Annotated[
        PositiveInt, Field(description="Most calls in one replica at once.")
    ] = 512
    max_queued_requests: Annotated[
        int,
        Field(
            ge=-1, description="Most calls that wait for a replica; beyond it 429. -1: no limit."
        ),
    ] = 1024
    ray_actor_options: Annotated[
        dict[str, Any] | None,
        Field(description="`num_cpus`, `num_gpus`, `resources`, `runtime_env` of a replica."),
    ] = None
    user_config: Annotated[dict[str, Any] | None, undocumented] = None
    max_surge_percent: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description=(
                "Share of the replicas that a rollout starts beside those that serve, before it stops any; what cannot "
                "start then takes nothing down. 0 stops old ones first, for a cluster without room for more."
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
    def _one_way_to_scale(self) -> Self:
        if (
            self.num_replicas is not None
            and self.autoscaling_config is not None
            and self.num_replicas != "auto"
        ):
            raise ValueError("set num_replicas or autoscaling_config, not both")
        return self

    @property
    def scales_to_zero(self) -> bool:
        """Whether the deployment goes down to no replica when there is nothing to do."""
        return (self.autoscaling_config or {}).get("min_replicas") == 0

    def given(self) -> dict[str, Any]:
        """Return what Serve is told: the options that have a value, without those that this project handles itself."""
        return self.model_dump(exclude_none=True, exclude={"name", "user_config"})


class IngressOptions(DeploymentOptions):
    """Options of the ingress deployment; its limits are kept by the server itself, so that a refusal is our 429."""

    max_ongoing_requests: Annotated[
        PositiveInt, Field(description="Requests that one ingress replica works on at once.")
    ] = 1000
    max_queued_requests: Annotated[
        int,
        Field(
            ge=-1,
            description="Requests beyond those that may wait in it; after that 429. -1: no limit.",
        ),
    ] = 1000

    @model_validator(mode="after")
    def _has_no_user_config(self) -> Self:
        if self.user_config is not None:
            raise ValueError(
                "user_config: the ingress has no settings that change without a restart"
            )
        return self

    @property
    def max_requests(self) -> int | None:
        """Most embedding requests in one ingress replica, or None for no limit."""
        if self.max_queued_requests < 0:
            return None
        return self.max_ongoing_requests + self.max_queued_requests
