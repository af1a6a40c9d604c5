"""The request and response of `POST /v1/embeddings`, as pydantic models.

Requests are validated in this module and nowhere else. The response models only describe responses for `/openapi.json`;
`api/serialization` writes the responses from buffers. An error never contains a value that a client sent.
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from serve_app.errors import InvalidRequestError
from serve_app.schemas.base import Answer
from serve_app.schemas.inputs import Inputs, Texts, TokenIdLists, plain, whole

TruncateDirection = Literal["right", "left"]
EncodingFormat = Literal["float", "base64"]
Priority = Literal["interactive", "bulk"]
InputType = Literal[
    "query",
    "document",
    "search_query",
    "search_document",
    "passage",
    "classification",
    "clustering",
]
TruncateWord = Literal["NONE", "END", "START"]

# What the words of NVIDIA's and Cohere's clients mean: whether to truncate, and from which side.
_TRUNCATE_WORDS: dict[TruncateWord, tuple[bool, TruncateDirection | None]] = {
    "NONE": (False, None),
    "END": (True, "right"),
    "START": (True, "left"),
}
# The JSON escape of a surrogate, which is half of a character such as an emoji.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def _lowercase(value: Any) -> Any:
    # TEI's clients write "Right" and "Left".
    return value.lower() if isinstance(value, str) else value


Direction = Annotated[TruncateDirection | None, BeforeValidator(_lowercase)]


def _check_truncate(value: Any) -> bool | TruncateWord | None:
    if value is None or isinstance(value, bool):
        return value
    for word in _TRUNCATE_WORDS:
        if isinstance(value, str) and value.upper() == word:
            return word
    message = f"truncate must be true, false, or one of {', '.join(_TRUNCATE_WORDS)}."
    raise InvalidRequestError(message, "invalid_truncate", "truncate")


# This replaces pydantic's union, whose error would name only one of the types.
Truncate = Annotated[
    bool | TruncateWord | None,
    PlainValidator(_check_truncate),
    WithJsonSchema(
        {"anyOf": [{"type": "boolean"}, {"enum": [*_TRUNCATE_WORDS]}, {"type": "null"}]}
    ),
]


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`. Unknown fields are ignored, and `null` means absent."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    input: Annotated[
        Inputs, Field(description="The text or texts to embed, or token ids.", examples=["string"])
    ] = None
    inputs: Annotated[Inputs, Field(description="Alias of `input`.")] = None
    model: Annotated[
        StrictStr | None,
        Field(description="The name or alias of a model. Default: the first model."),
    ] = None
    encoding_format: Annotated[
        EncodingFormat | None,
        Field(description="`float` or `base64` (little-endian float32). Default: `float`."),
    ] = None
    dimensions: Annotated[
        Annotated[StrictInt, Field(ge=1), BeforeValidator(whole)] | None,
        Field(
            description="Number of leading components to keep of each vector. Default: all components."
        ),
    ] = None
    user: Annotated[StrictStr | None, Field(description="Accepted and ignored.")] = None
    normalize: Annotated[
        StrictBool | None, Field(description="Scale vectors to unit length. Default: true.")
    ] = None
    prompt_name: Annotated[
        StrictStr | None, Field(description="The name of a prompt that is prepended to each input.")
    ] = None
    input_type: Annotated[
        InputType | None,
        Field(
            description=(
                "The type of the inputs. It selects the model's prompt for this type, unless `prompt_name` is set. "
                "The type can also be sent as a suffix of the model's name: `name:query`."
            )
        ),
    ] = None
    truncate: Annotated[
        Truncate,
        Field(
            description=(
                "Whether to truncate inputs that are too long. If false, a request with such an input is "
                "rejected with 422. `NONE` means false. `END` and `START` mean true, and name the side. "
                "Default: the model's setting."
            )
        ),
    ] = None
    truncate_direction: Annotated[
        Direction, Field(description="The side from which tokens are removed. Default: `right`.")
    ] = None
    truncation_direction: Annotated[
        Direction, Field(description="Alias of `truncate_direction`.")
    ] = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.input is None and self.inputs is None:
            raise InvalidRequestError("input is required.", "missing_input", "input")
        _check_alias("input", self.input, "inputs", self.inputs)
        _check_alias(
            "truncate_direction",
            self.truncate_direction,
            "truncation_direction",
            self.truncation_direction,
        )
        word_direction = self._word[1]
        if word_direction and self._sent_direction not in (None, word_direction):
            field = "truncate_direction" if self.truncate_direction else "truncation_direction"
            message = (
                f"{field} contradicts truncate, whose value {self.truncate} means {word_direction}."
            )
            raise InvalidRequestError(message, "ambiguous", field)
        return self

    @property
    def input_name(self) -> str:
        """The name of the field in which the client sent its inputs. Errors use this name."""
        return "input" if self.input is not None else "inputs"

    @property
    def items(self) -> Texts | TokenIdLists:
        """The inputs as a list, even if the client sent a single input."""
        value = self._value
        if isinstance(value, str):
            return [value]
        # A flat list of integers is one input. Validation has checked that all items have the same type.
        return [value] if isinstance(value[0], int) else value

    @property
    def is_single(self) -> bool:
        """Whether the client sent one input without a list. Errors then name the input without an index."""
        value = self._value
        return isinstance(value, str) or isinstance(value[0], int)

    @property
    def _value(self) -> str | Texts | list[int] | TokenIdLists:
        value = self.input if self.input is not None else self.inputs
        assert value is not None  # checked by _one_input
        return value

    @property
    def truncates(self) -> bool | None:
        """Whether to truncate inputs that are too long; None for the model's setting."""
        return self._word[0]

    @property
    def direction(self) -> TruncateDirection:
        """The side from which tokens are removed."""
        return self._sent_direction or self._word[1] or "right"

    @property
    def _word(self) -> tuple[bool | None, TruncateDirection | None]:
        if self.truncate is None or isinstance(self.truncate, bool):
            return self.truncate, None
        return _TRUNCATE_WORDS[self.truncate]

    @property
    def _sent_direction(self) -> TruncateDirection | None:
        return self.truncate_direction or self.truncation_direction


def _check_alias(name: str, value: Any, alias: str, other: Any) -> None:
    if value is not None and other is not None and value != other:
        raise InvalidRequestError(
            f"{name} and {alias} are the same field. Send only one of them.", "ambiguous", alias
        )


def parse_request(body: bytes, *, most_inputs: int | None = None) -> EmbeddingRequest:
    """Parse and validate a request body.

    Args:
        body: JSON in UTF-8.
        most_inputs: the maximum number of inputs. The token ids of a request with more inputs are not checked, because
            the caller rejects it anyway.

    Raises:
        InvalidRequestError: the body is not a JSON object, or a field is invalid. `param` names the field or the item
            at fault.
    """
    try:
        return EmbeddingRequest.model_validate_json(
            body.removeprefix(codecs.BOM_UTF8), context={"most_inputs": most_inputs}
        )
    except ValidationError as error:
        # Pydantic's parser rejects such a body at the first half of a character, without naming the item.
        if _SURROGATE_ESCAPE.search(body):
            _reject_broken_text(_parse_leniently(body))
        raise explain(error) from None


def build_request(**fields: Any) -> EmbeddingRequest:
    """Build a request from Python values, with the same checks and errors as `parse_request`."""
    values = {name: plain(value) for name, value in fields.items()}
    _reject_broken_text(values)
    try:
        return EmbeddingRequest.model_validate(values)
    except ValidationError as error:
        raise explain(error) from None


def _parse_leniently(body: bytes) -> dict[str, Any]:
    """Parse a body with the standard library, which accepts half of a character. It takes 0.04 s for 16 MiB."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _reject_broken_text(fields: Mapping[str, Any]) -> None:
    """Check that all texts consist of whole characters.

    Raises:
        InvalidRequestError: a text contains half of a character.
    """
    for name in EmbeddingRequest.model_fields:
        value = fields.get(name)
        texts = value if isinstance(value, list) else [value]
        for index, text in enumerate(texts):
            if isinstance(text, str) and not _is_whole(text):
                message = (
                    "{item} contains half of a character, such as an emoji that was cut in two. Cut texts between "
                    "characters."
                )
                place = index if isinstance(value, list) else None
                raise InvalidRequestError(message, f"invalid_{name}", name, index=place)


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_priority(sent: str | None, *, name: str) -> Priority | None:
    """Parse a priority. None and "" mean that the client did not set one.

    Args:
        sent: the client's value, in upper or lower case.
        name: the header or argument in which the client sent the value. Errors use this name.

    Raises:
        InvalidRequestError: the value is neither `interactive` nor `bulk`.
    """
    if not sent:
        return None
    known: tuple[Priority, ...] = get_args(Priority)
    for priority in known:
        if str(sent).strip().lower() == priority:  # Python callers can pass any type
            return priority
    raise InvalidRequestError(f"{name} must be {' or '.join(known)}.", "invalid_priority", name)


def explain(error: ValidationError) -> InvalidRequestError:
    """Convert pydantic's first error to an error of this project.

    The message names the expected type. It never contains the value that the client sent.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return InvalidRequestError(f"The body is not valid JSON: {reason}.", "invalid_json")
    if not first["loc"]:
        return InvalidRequestError("The body must be a JSON object.", "invalid_json")
    param = str(first["loc"][0])
    return InvalidRequestError(f"{param}: {first['msg']}.", f"invalid_{param}", param)


class Embedding(Answer):
    """The vector of one input."""

    embedding: list[float] | Annotated[str, Field(description="Little-endian float32 in base64.")]
    index: int
    object: Literal["embedding"]


class Usage(Answer):
    """The number of tokens that the model processed.

    The number includes special tokens and the prompt's tokens. It does not include padding, or tokens that truncation
    has removed.
    """

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Answer):
    """The response of `POST /v1/embeddings`."""

    data: list[Embedding]
    model: str
    object: Literal["list"]
    usage: Usage
