"""The base class of response models."""

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all response models. `/openapi.json` marks fields with defaults as required: they are always sent."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)
