"""The JSON of the wire as pydantic models. No I/O."""
