"""The models that are served, and what the name means that a client sends: a name, an alias, `name:query`.

Knows neither Starlette nor Ray: a model is reached through `Embedder`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

from serve_app.config.models import ModelConfig
from serve_app.dispatch.admission import Admission
from serve_app.errors import ModelNotFoundError
from serve_app.messages import ModelAnswer, TokenizedInputs
from serve_app.schemas.embeddings import InputType
from serve_app.tokenization.tokenizer import Tokenizer


class Embedder(Protocol):
    """A model's deployment, as the service sees it."""

    admission: Admission

    async def embed(
        self, inputs: TokenizedInputs, *, request_id: str, is_bulk: bool
    ) -> ModelAnswer:
        """Return the vectors of all inputs, or raise one of ours."""

    async def is_ready(self) -> bool:
        """Return whether a replica can embed now."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the configuration, with what it takes to serve it.

    Attributes:
        config: its settings.
        dimensions: native dimensions; None for a model that does not embed.
        tokenizer: None for a model that does not embed.
        embedder: None for a model that does not embed.
        reason: why it embeds or does not.
    """

    config: ModelConfig
    dimensions: int | None
    tokenizer: Tokenizer | None
    embedder: Embedder | None
    reason: str

    @property
    def name(self) -> str:
        """What responses call it."""
        return self.config.name


class ModelRegistry:
    """All models of the configuration.

    Args:
        models: the first is the default.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = tuple(models)
        self._by_name: Mapping[str, ServedModel] = dict(_names(models))

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    @property
    def first(self) -> ServedModel:
        """The default model."""
        return self._models[0]

    def resolve(self, name: str | None) -> ServedModel:
        """Return the model that a request asks for; absent, empty and the page's literal "null" mean the first.

        Raises:
            ModelNotFoundError: no model is served under that name.
        """
        return self.get(name) if name and name != "null" else self.first

    def get(self, name: str) -> ServedModel:
        """Return the model of a name or alias, which may end in what the inputs are: `name:query`.

        Raises:
            ModelNotFoundError: no model is served under that name.
        """
        model = self._by_name.get(name) or self._by_name.get(_without_input_type(name))
        if model is None:
            served = ", ".join(self._by_name)
            message = f"The model does not exist here. Served: {served}."
            if name.rpartition(":")[0] in self._by_name:
                known = ", ".join(get_args(InputType))
                message = f"A model's name may end in what the inputs are, which is one of {known}."
            raise ModelNotFoundError(message, "model_not_found", "model")
        return model

    def input_type(self, name: str | None) -> InputType | None:
        """Return what the inputs are, if the name that a client sends says so and is not a model's own."""
        return _input_type_of(name) if name and name not in self._by_name else None


def _names(models: Sequence[ServedModel]) -> Iterator[tuple[str, ServedModel]]:
    for model in models:
        for name in (model.name, *model.config.aliases):
            yield name, model


def _input_type_of(name: str) -> InputType | None:
    """Return what stands behind a model's name, if it says what the inputs are."""
    last = name.rpartition(":")[2]
    return next((known for known in get_args(InputType) if known == last), None)


def _without_input_type(name: str) -> str:
    return name.rpartition(":")[0] if _input_type_of(name) else name
