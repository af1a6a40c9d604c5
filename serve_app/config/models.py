"""The settings under `args:` of a Serve config file, validated, frozen and documented.

The documentation's tables are generated from the fields' descriptions. This module does not import
Ray.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from serve_app.config.deployments import IngressOptions, ModelOptions, Settings, undocumented
from serve_app.config.http import HttpConfig

Dtype = Literal["float32", "float16", "bfloat16"]
EngineChoice = Literal["auto", "torch", "openvino"]
PaddingChoice = Literal["auto", "always"]
TokenIdsMode = Literal["cl100k", "model", "reject"]


def format_validation_error(error: ValidationError, *, below: str = "") -> str:
    """Format pydantic's errors as one line that does not contain the invalid values.

    Args:
        error: Pydantic's exception.
        below: The key that contains the validated settings. Each key in the result starts with this key.
    """
    findings = []
    for finding in error.errors():
        key = ".".join(map(str, [*filter(None, [below]), *finding["loc"]]))
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "extra_forbidden":
            message = _unknown_setting(str(finding["loc"][-1]), of=error.title)
        findings.append(f"{key}: {message}" if key else message)
    return "; ".join(findings)


def _unknown_setting(name: str, *, of: str) -> str:
    """Describe a setting that does not exist, with the existing one whose name is closest."""
    models: tuple[type[Settings], ...] = (ModelConfig, ServerConfig, HttpConfig, ModelOptions)
    if of == BatchSettings.__name__:  # a `user_config`, which has few of them
        models = (BatchSettings,)
    names = {name for model in models for name in model.model_fields}
    closest = get_close_matches(name, names, 1)
    return f"unknown setting; did you mean `{closest[0]}`?" if closest else "unknown setting"


class BatchSettings(Settings):
    """Settings that a running replica accepts through `user_config`, without a restart."""

    renamed: ClassVar[Mapping[str, str]] = {"wedged_after_s": "hang_timeout_s"}
    removed: ClassVar[Mapping[str, str]] = {
        "max_batch_size": "it is derived from deployment.max_ongoing_requests"
    }

    max_batch_tokens: Annotated[
        PositiveInt | None,
        Field(
            description=(
                "Token budget: maximum number of tokens, padding included, in one forward pass. "
                "Default: 2048 on a CPU, 32768 on a GPU."
            )
        ),
    ] = None
    max_queued_tokens: Annotated[
        PositiveInt,
        Field(
            description=(
                "Maximum number of tokens that wait for each model replica. Tokens wait while the "
                "replicas hold as many calls as `deployment.max_ongoing_requests` allows. The limit "
                "counts the tokens that wait in all ingress replicas together. Requests above it are "
                "rejected with 429. A request of any size is accepted if no other one waits. Ingress "
                "replicas discover each other within seconds of a burst; until then, each one may "
                "accept up to the full limit."
            )
        ),
    ] = 200_000
    hang_timeout_s: Annotated[
        PositiveFloat,
        Field(
            description=(
                "Time limit for a batch, in seconds. A replica whose batch runs longer than this is "
                "killed and replaced. Set it above the time of your slowest batch. Lost requests "
                "are retried on another replica, for at most `http.request_timeout_s`. If there is "
                "no other replica, they wait for one, for at most `http.replica_wait_timeout_s`."
            )
        ),
    ] = 60.0


class ModelConfig(BatchSettings):
    """The settings of one served model."""

    name: Annotated[
        str, Field(min_length=1, description="The model's name in requests and responses.")
    ]
    source: Annotated[
        str,
        Field(
            min_length=1,
            description="A directory, a Hub ID, or `package:NAME/PATH` for a directory inside an installed package.",
        ),
    ]
    revision: Annotated[
        str | None, Field(description="Branch, tag or commit, if `source` is a Hub ID.")
    ] = None
    trust_remote_code: Annotated[
        bool, Field(description="Whether to run Python code from the model's repository.")
    ] = False
    aliases: Annotated[
        tuple[str, ...], Field(description="Other names that requests may use for the model.")
    ] = ()
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="`cpu`, `cuda`, `cuda:N`, or `auto`, which uses a GPU if there is one.",
        ),
    ] = "auto"
    engine: Annotated[
        EngineChoice,
        Field(
            description=(
                "Inference engine. On a CPU, `auto` uses `openvino` if OpenVINO is installed and "
                "can run the model, and `torch` otherwise. On a GPU, the engine is always `torch`."
            )
        ),
    ] = "auto"
    # Measured with MiniLM over 1,000 texts of 3 to 256 tokens: the lowest cosine similarity to torch
    # in float32. It was 0.99995 for OpenVINO in bfloat16, 0.999997 for OpenVINO in float16, and
    # 0.9998 for torch in bfloat16.
    dtype: Annotated[
        Dtype,
        Field(
            description=(
                "Data type of the computation. With `bfloat16` and MiniLM, the lowest cosine "
                "similarity to float32 over 1,000 texts is 0.9999 for OpenVINO and 0.9998 for "
                "torch. OpenVINO falls back to float32 on a processor that does not support the "
                "selected type."
            )
        ),
    ] = "float32"
    # On a GPU in half precision, `auto` packs inputs without padding, unless that changes the model's
    # vectors.
    padding: Annotated[PaddingChoice, undocumented] = "auto"
    # Number of CPU threads that each replica computes with. None means the replica's `num_cpus` if
    # that is at least 1, and all cores otherwise.
    threads: Annotated[PositiveInt | None, undocumented] = None
    prompts: Annotated[
        dict[str, str],
        Field(description="Named prompts, in addition to those in the model's files."),
    ] = {}  # noqa: RUF012  # pydantic copies it
    max_input_tokens: Annotated[
        PositiveInt | None,
        Field(
            description=(
                "Maximum number of tokens in an input. The setting can lower the model's own "
                "limit, but not raise it."
            )
        ),
    ] = None
    interactive_tokens: Annotated[
        int,
        Field(
            ge=0,
            description=(
                "Requests with more than this many tokens are bulk; all other requests are "
                "interactive. Interactive requests go first. Bulk requests are rejected once the "
                "waiting tokens reach three quarters of the limit that `max_queued_tokens` sets. The "
                "request header `x-priority: interactive` or `x-priority: bulk` overrides this "
                "setting."
            ),
        ),
    ] = 512
    target_utilization: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description=(
                "Target fraction of time, above 0 and up to 1, that each replica is busy. Only used "
                "with `autoscaling_config`."
            ),
        ),
    ] = 0.7
    # Only used with `autoscaling_config`: replicas are added until they can finish all pending work
    # within this many seconds.
    target_wait_s: Annotated[PositiveFloat, undocumented] = 10.0
    # Minimum fraction of the tokens, from 0 to below 1, that bulk requests get while interactive
    # requests wait too.
    bulk_share: Annotated[float, Field(ge=0, lt=1), undocumented] = 0.25
    truncate: Annotated[
        bool,
        Field(
            description=(
                "Whether inputs that are too long are truncated, for requests that do not set "
                "`truncate`."
            )
        ),
    ] = False
    token_ids: Annotated[
        TokenIdsMode,
        Field(
            description=(
                "How integer inputs are interpreted. `cl100k`: as ids of OpenAI's `cl100k_base` "
                "encoding, which OpenAI clients send. `model`: as the model's own token ids. "
                "`reject`: the request is rejected with 400."
            )
        ),
    ] = "cl100k"
    deployment: Annotated[
        ModelOptions, Field(description="Ray Serve's options for the model's deployment.")
    ] = ModelOptions()

    @model_validator(mode="after")
    def _check_user_config(self) -> Self:
        try:  # fail here, not after a replica has started
            BatchSettings.model_validate(self.deployment.user_config or {})
        except ValidationError as error:
            raise ValueError(
                format_validation_error(error, below="deployment.user_config")
            ) from None
        return self

    @model_validator(mode="after")
    def _check_autoscaling(self) -> Self:
        scaling = self.deployment.autoscaling_config or {}
        if "target_ongoing_requests" in scaling and "policy" not in scaling:
            raise ValueError(
                "deployment.autoscaling_config.target_ongoing_requests: models scale by their "
                "workload, not by the number of requests; set the model's target_utilization "
                "instead, or set a policy of your own"
            )
        return self

    @property
    def deployment_name(self) -> str:
        """The deployment's name in Ray Serve.

        By default, it is the model's name, with `--` in place of `/` and other characters that Ray
        Serve does not accept.
        """
        return self.deployment.name or re.sub(r"[^A-Za-z0-9_.-]+", "--", self.name)

    @property
    def batch_settings(self) -> dict[str, Any]:
        """The initial `user_config`: the settings that can change without a restart."""
        return {name: getattr(self, name) for name in BatchSettings.model_fields} | (
            self.deployment.user_config or {}
        )


def _check_not_empty(models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
    if not models:
        raise ValueError("at least one model is required")
    return models


class ServerConfig(Settings):
    """All settings under `args:` of the application."""

    models: Annotated[
        tuple[ModelConfig, ...],
        AfterValidator(
            _check_not_empty
        ),  # pydantic's min_length also fails if one model is invalid
        Field(description="The served models. The first one is the default model."),
    ]
    http: HttpConfig = HttpConfig()
    ingress: IngressOptions = IngressOptions()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        _check_unique(
            "models", "name or alias", (n for m in self.models for n in {m.name, *m.aliases})
        )
        _check_unique(
            "models",
            "deployment name",
            [*(m.deployment_name for m in self.models), self.ingress_name],
        )
        return self

    @property
    def ingress_name(self) -> str:
        """The ingress deployment's name in Ray Serve."""
        return self.ingress.name or "ingress"


def _check_unique(key: str, kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{key}: the {kind} {name!r} is used twice")
        seen.add(name)
