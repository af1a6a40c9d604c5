"""The base class of response models."""

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base class of all response models.

    `/openapi.json` marks fields with defaults as required, because responses always contain them.
    """

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)
