"""The registry of served models. It resolves the `model` field of a request: a name, an alias, or `name:query`.

This module does not depend on Starlette or Ray. Models are called through the `Embedder` protocol.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

from serve_app.config.models import ModelConfig
from serve_app.errors import ModelNotFoundError
from serve_app.messages import EmbedResult, TokenizedInputs
from serve_app.schemas.embeddings import InputType
from serve_app.tokenization.tokenizer import Tokenizer

# What a model is served for. `none`: the model is configured, but no route can use it.
Task = Literal["embed", "none"]


class Embedder(Protocol):
    """The service's interface to the deployment of an embedding model."""

    async def embed(
        self, inputs: TokenizedInputs, *, request_id: str, is_bulk: bool
    ) -> EmbedResult:
        """Return the vectors of all inputs.

        Raises:
            ServiceError: the call failed as a whole.
        """

    @property
    def is_ready(self) -> bool:
        """Whether a replica can embed now, or the first request would start one."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A configured model. A model with a task is an object of the task's subclass.

    Attributes:
        config: the model's settings.
        reason: why the model has or does not have its task, as a clause.
        task: what the model is served for.
    """

    config: ModelConfig
    reason: str
    task: ClassVar[Task] = "none"

    @property
    def name(self) -> str:
        """The name that responses report."""
        return self.config.name


@dataclass(frozen=True, slots=True)
class EmbeddingModel(ServedModel):
    """An embedding model and the objects that serve it.

    Attributes:
        dimensions: the model's native number of dimensions.
        tokenizer: the model's tokenizer.
        embedder: the client of the model's deployment.
    """

    dimensions: int
    tokenizer: Tokenizer
    embedder: Embedder
    task: ClassVar[Task] = "embed"


class ModelRegistry:
    """All configured models, by name and alias.

    Args:
        models: the models; the first is the default.
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

    @property
    def embedding(self) -> Sequence[EmbeddingModel]:
        """The embedding models."""
        return [model for model in self._models if isinstance(model, EmbeddingModel)]

    def resolve(self, name: str | None) -> tuple[ServedModel, InputType | None]:
        """Return the model for a request's `model` field, and the input type that is a suffix of the field, if any.

        None, "" and "null" select the default model.

        Raises:
            ModelNotFoundError: no model has that name.
        """
        if not name or name == "null":
            return self.first, None
        model = self.get(name)
        return model, None if name in self._by_name else _input_type_of(name)

    def get(self, name: str) -> ServedModel:
        """Return the model with this name or alias. The name may have an input type as a suffix: `name:query`.

        Raises:
            ModelNotFoundError: no model has that name.
        """
        model = self._by_name.get(name) or self._by_name.get(_without_input_type(name))
        if model is None:
            names = ", ".join(self._by_name)
            message = f"The model does not exist. Available models: {names}."
            if name.rpartition(":")[0] in self._by_name:
                known = ", ".join(get_args(InputType))
                message = f"The suffix of a model name must be an input type: one of {known}."
            raise ModelNotFoundError(message, "model_not_found", "model")
        return model


def _names(models: Sequence[ServedModel]) -> Iterator[tuple[str, ServedModel]]:
    for model in models:
        for name in (model.name, *model.config.aliases):
            yield name, model


def _input_type_of(name: str) -> InputType | None:
    """Return the suffix after the last colon, if it is an input type."""
    suffix = name.rpartition(":")[2]
    return next((known for known in get_args(InputType) if known == suffix), None)


def _without_input_type(name: str) -> str:
    return name.rpartition(":")[0] if _input_type_of(name) else name
