"""The loaded model, which turns token ids into vectors.

This is the only package that imports torch, sentence-transformers and OpenVINO. It does not depend on Ray, queues,
requests, metrics or event loops.

This module lists the public names, for the rest of the server and for Python callers. Modules inside the package import
each other directly.
"""

from serve_app.encoder.encoder import Encoder
from serve_app.encoder.engine import EncoderBrokenError, default_batch_tokens
from serve_app.encoder.loading import load_encoder

__all__ = ["Encoder", "EncoderBrokenError", "default_batch_tokens", "load_encoder"]
