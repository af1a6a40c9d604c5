"""What all answers have in common."""

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of what is sent: a field with a default is always there, and `/openapi.json` says so."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)
