"""The settings: what `args:` of the Serve config file may say, validated, frozen and documented.

Every field has a default that is right for most people, and its description here is the one that the README's table
shows. Knows nothing of Ray.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from serve_app.config.deployments import DeploymentOptions, IngressOptions, Settings, undocumented
from serve_app.config.http import HttpConfig

Dtype = Literal["float32", "float16", "bfloat16"]
EngineChoice = Literal["auto", "torch", "openvino"]
PaddingChoice = Literal["auto", "always"]
TokenIdsMode = Literal["cl100k", "model", "reject"]


def format_validation_error(error: ValidationError, *, below: str = "") -> str:
    """Return pydantic's findings in one line: each key, under the one given, and what is wrong; never the value."""
    findings = []
    for finding in error.errors():
        key = ".".join(map(str, [*filter(None, [below]), *finding["loc"]]))
        what = finding["msg"].removeprefix("Value error, ")
        findings.append(f"{key}: {what}" if key else what)
    return "; ".join(findings)


class BatchSettings(Settings):
    """What a running replica takes from `user_config`, without a restart."""

    renamed: ClassVar[Mapping[str, str]] = {"wedged_after_s": "hang_timeout_s"}
    removed: ClassVar[Mapping[str, str]] = {
        "max_batch_size": "it follows from deployment.max_ongoing_requests"
    }

    max_batch_tokens: Annotated[
        PositiveInt | None,
        Field(
            description="Token budget: most padded tokens in a forward pass. Default: 2048 on a CPU, 32768 on a GPU."
        ),
    ] = None
    max_queued_tokens: Annotated[
        PositiveInt,
        Field(
            description=(
                "Most tokens that wait, in all ingress replicas together, for each replica of the model; beyond it "
                "429. Ingress replicas hear of each other within seconds; until then each may take as many."
            )
        ),
    ] = 200_000
    hang_timeout_s: Annotated[
        PositiveFloat,
        Field(
            description=(
                "A replica with a batch that computes longer than this ends and is replaced, so it has to be longer "
                "than the slowest input takes; what it had is sent to another for as long as `http.request_timeout_s` "
                "and, where there is no other yet, `http.replica_wait_timeout_s` allow."
            )
        ),
    ] = 60.0


class ModelConfig(BatchSettings):
    """One model that is served."""

    name: Annotated[
        str, Field(min_length=1, description="What clients ask for and what responses carry.")
    ]
    source: Annotated[
        str,
        Field(
            min_length=1,
            description="A directory, a Hub id, or `package:NAME/PATH` for a directory inside an installed package.",
        ),
    ]
    revision: Annotated[str | None, Field(description="Branch, tag or commit of a Hub id.")] = None
    trust_remote_code: Annotated[
        bool, Field(description="Run code that the model's repository brings.")
    ] = False
    aliases: Annotated[
        tuple[str, ...], Field(description="Other names that clients may ask for.")
    ] = ()
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="`auto` takes a GPU where there is one.",
        ),
    ] = "auto"
    engine: Annotated[
        EngineChoice,
        Field(
            description=(
                "What computes: `auto` takes `openvino` on a CPU where it is installed and can run the model, else "
                "`torch`; a GPU is always torch's."
            )
        ),
    ] = "auto"
    # Measured with MiniLM over 1,000 texts of 3 to 256 tokens against torch in float32, as the least cosine: OpenVINO
    # 0.99995 in bfloat16 and 0.999997 in float16, torch 0.9998 in bfloat16.
    dtype: Annotated[
        Dtype,
        Field(
            description=(
                "Type of the arithmetic. In `bfloat16` the least cosine to float32 over 1,000 texts is 0.9999 with "
                "OpenVINO and MiniLM, 0.9998 with torch. Without units for it in the processor OpenVINO stays with "
                "float32."
            )
        ),
    ] = "float32"
    # `auto` packs inputs without padding on a GPU in half precision, if the model gives the same vectors like that.
    padding: Annotated[PaddingChoice, undocumented] = "auto"
    # CPU threads of the model; None for the replica's `num_cpus` if that is 1 or more, else for all cores.
    threads: Annotated[PositiveInt | None, undocumented] = None
    prompts: Annotated[
        dict[str, str],
        Field(description="Prompts by name, added to those that the model's files bring."),
    ] = {}  # noqa: RUF012  # pydantic copies it
    max_input_tokens: Annotated[
        PositiveInt | None, Field(description="Lowers the most tokens that an input may have.")
    ] = None
    interactive_tokens: Annotated[
        int,
        Field(
            ge=0,
            description=(
                "Requests of more tokens are bulk, which others overtake before the model and which is refused at "
                "three quarters of `max_queued_tokens`; the header `x-priority: interactive` or `bulk` decides instead."
            ),
        ),
    ] = 512
    target_utilization: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="With an `autoscaling_config`: how much of their time replicas should be busy.",
        ),
    ] = 0.7
    # With an `autoscaling_config`: replicas are added until what waits is finished within these seconds.
    target_wait_s: Annotated[PositiveFloat, undocumented] = 10.0
    # Bulk's least share of the tokens while interactive requests wait too.
    bulk_share: Annotated[float, Field(ge=0, lt=1), undocumented] = 0.25
    truncate: Annotated[bool, Field(description="What an absent `truncate` means.")] = False
    token_ids: Annotated[
        TokenIdsMode,
        Field(
            description=(
                "Integer inputs: `cl100k` reads them as OpenAI's encoding of a text, as its clients send them, `model` "
                "as the model's own ids, `reject` is 400."
            )
        ),
    ] = "cl100k"
    deployment: Annotated[
        DeploymentOptions, Field(description="Ray Serve's options of this model's deployment.")
    ] = DeploymentOptions()

    @model_validator(mode="after")
    def _user_config_is_valid(self) -> Self:
        try:  # not only when a replica has started
            BatchSettings.model_validate(self.deployment.user_config or {})
        except ValidationError as error:
            raise ValueError(
                format_validation_error(error, below="deployment.user_config")
            ) from None
        return self

    @model_validator(mode="after")
    def _scales_by_work(self) -> Self:
        scaling = self.deployment.autoscaling_config or {}
        if "target_ongoing_requests" in scaling and "policy" not in scaling:
            raise ValueError(
                "deployment.autoscaling_config.target_ongoing_requests: a model scales by its work and not by "
                "requests; set the model's target_utilization, or a policy of your own"
            )
        return self

    @property
    def deployment_name(self) -> str:
        """The deployment's name in Ray Serve: the one set, else the model's with `/` and the like replaced."""
        return self.deployment.name or re.sub(r"[^A-Za-z0-9_.-]+", "--", self.name)

    @property
    def batch_settings(self) -> dict[str, Any]:
        """The part that a running replica takes without a restart, as `user_config`."""
        return {name: getattr(self, name) for name in BatchSettings.model_fields} | (
            self.deployment.user_config or {}
        )


def _some(models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
    if not models:
        raise ValueError("name at least one model")
    return models


class ServerConfig(Settings):
    """Everything under `args:` of the application."""

    models: Annotated[
        tuple[ModelConfig, ...],
        AfterValidator(_some),  # a length of pydantic's is missed too where a model has a mistake
        Field(description="The first is the default model."),
    ]
    http: HttpConfig = HttpConfig()
    ingress: IngressOptions = IngressOptions()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
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


def _check_unique(key: str, what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{key}: the {what} {name!r} is used twice")
        seen.add(name)
