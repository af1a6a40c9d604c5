"""An OpenAI-compatible embeddings server on Ray Serve. Import from its modules; nothing is re-exported."""

__version__ = "0.1.0"
