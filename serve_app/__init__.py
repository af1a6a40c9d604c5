"""An OpenAI-compatible embeddings server on Ray Serve.

The package re-exports nothing: import from its modules.
"""

__version__ = "0.2.0"
