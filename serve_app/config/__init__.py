"""The settings of a Serve config file as pydantic models. No I/O."""
