"""The JSON of requests, models and errors, as pydantic models.

What comes in is checked here, once; what goes out is described here for `/openapi.json` and written from buffers by
`vectors`. Computes nothing, and never puts a value that a client sent into an error.
"""

import codecs
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from serve_app.errors import InvalidRequestError
from serve_app.schemas.base import Answer
from serve_app.schemas.inputs import Inputs, Texts, TokenIdLists, plain, whole

TruncateDirection = Literal["right", "left"]
EncodingFormat = Literal["float", "base64"]
Priority = Literal["interactive", "bulk"]
InputType = Literal["query", "document", "search_query", "search_document", "passage"]


def _lowercase(value: Any) -> Any:
    # TEI's clients write "Right" and "Left".
    return value.lower() if isinstance(value, str) else value


Direction = Annotated[TruncateDirection | None, BeforeValidator(_lowercase)]


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`; unknown fields are ignored and `null` means absent."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    input: Annotated[
        Inputs, Field(description="The text or texts to embed, or token ids.", examples=["string"])
    ] = None
    inputs: Annotated[Inputs, Field(description="Another name of `input`.")] = None
    model: Annotated[
        StrictStr | None, Field(description="A served model or alias. Default: the first one.")
    ] = None
    encoding_format: Annotated[
        EncodingFormat | None,
        Field(description="`base64` is little-endian float32. Default: `float`."),
    ] = None
    dimensions: Annotated[
        Annotated[StrictInt, Field(ge=1), BeforeValidator(whole)] | None,
        Field(description="Keeps the first components; 1 to the model's own. Default: all."),
    ] = None
    user: Annotated[StrictStr | None, Field(description="Accepted and not used.")] = None
    normalize: Annotated[StrictBool | None, Field(description="Unit length. Default: true.")] = None
    prompt_name: Annotated[
        StrictStr | None, Field(description="A prompt of the model, put before each input.")
    ] = None
    input_type: Annotated[
        InputType | None,
        Field(
            description=(
                "What the inputs are, which picks the model's prompt for it; a `prompt_name` wins. A model's name may "
                "end in it instead, as `name:query`."
            )
        ),
    ] = None
    truncate: Annotated[
        StrictBool | None,
        Field(description="Cut inputs that are too long, instead of 422. Default: false."),
    ] = None
    truncate_direction: Annotated[
        Direction, Field(description="The side that is cut. Default: `right`.")
    ] = None
    truncation_direction: Annotated[
        Direction, Field(description="Another name of `truncate_direction`.")
    ] = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.input is None and self.inputs is None:
            raise InvalidRequestError("input is required.", "missing_input", "input")
        _check_same("input", self.input, "inputs", self.inputs)
        _check_same(
            "truncate_direction",
            self.truncate_direction,
            "truncation_direction",
            self.truncation_direction,
        )
        return self

    @property
    def input_name(self) -> str:
        """The name under which the client sent its inputs, for errors."""
        return "input" if self.input is not None else "inputs"

    @property
    def items(self) -> Texts | TokenIdLists:
        """The inputs as a list, whichever way they were sent."""
        value = self._sent
        if isinstance(value, str):
            return [value]
        # A flat list of integers is one input; that a list is of one kind was checked.
        return [value] if isinstance(value[0], int) else value

    @property
    def is_single(self) -> bool:
        """Whether the client sent one input outside a list, so that errors name it without an index."""
        value = self._sent
        return isinstance(value, str) or isinstance(value[0], int)

    @property
    def _sent(self) -> str | Texts | list[int] | TokenIdLists:
        value = self.input if self.input is not None else self.inputs
        assert value is not None  # _one_input
        return value

    @property
    def direction(self) -> TruncateDirection:
        """The side that is cut."""
        return self.truncate_direction or self.truncation_direction or "right"


def _check_same(name: str, value: Any, alias: str, other: Any) -> None:
    if value is not None and other is not None and value != other:
        raise InvalidRequestError(
            f"{name} and {alias} are the same field; send one of them.", "ambiguous", alias
        )


def parse_request(body: bytes, *, most_inputs: int | None = None) -> EmbeddingRequest:
    """Parse a body.

    Args:
        body: JSON.
        most_inputs: lists of token ids are not looked into if there are more; the caller refuses them.

    Raises:
        InvalidRequestError: no JSON, no object, or a field that is wrong; it names the field and the item.
    """
    try:
        return EmbeddingRequest.model_validate_json(
            body.removeprefix(codecs.BOM_UTF8), context={"most_inputs": most_inputs}
        )
    except ValidationError as error:
        raise explain(error) from None


def build_request(**fields: Any) -> EmbeddingRequest:
    """Build a request from Python values, with the checks of `parse_request` and its errors."""
    try:
        return EmbeddingRequest.model_validate(
            {name: plain(value) for name, value in fields.items()}
        )
    except ValidationError as error:
        raise explain(error) from None


def read_priority(sent: str | None, *, name: str) -> Priority | None:
    """Read what a client says of its request's lane; None or "" says nothing.

    Args:
        sent: by the client, in any case.
        name: what the client calls it.

    Raises:
        InvalidRequestError: it is none of the two.
    """
    if not sent:
        return None
    known: tuple[Priority, ...] = get_args(Priority)
    for priority in known:
        if sent.strip().lower() == priority:
            return priority
    raise InvalidRequestError(f"{name} must be {' or '.join(known)}.", "invalid_priority", name)


def explain(error: ValidationError) -> InvalidRequestError:
    """Turn pydantic's first finding into ours; pydantic's words hold the expected type, not the value sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        why = first["msg"].removeprefix("Invalid JSON: ")
        return InvalidRequestError(f"The body is not valid JSON: {why}.", "invalid_json")
    if not first["loc"]:
        return InvalidRequestError("The body must be a JSON object.", "invalid_json")
    param = str(first["loc"][0])
    return InvalidRequestError(f"{param}: {first['msg']}.", f"invalid_{param}", param)


class Embedding(Answer):
    """One input's vector."""

    embedding: list[float] | Annotated[str, Field(description="base64 of little-endian float32")]
    index: int
    object: Literal["embedding"]


class Usage(Answer):
    """Tokens that the model read: after truncation, with special and prompt tokens, without padding."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Answer):
    """The answer of `POST /v1/embeddings`."""

    data: list[Embedding]
    model: str
    object: Literal["list"]
    usage: Usage
