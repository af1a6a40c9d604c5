"""The loaded model: token ids to vectors.

The only package that imports torch, sentence-transformers and OpenVINO. It works without Ray and knows nothing of
queues, requests, metrics or event loops.

This module lists the public names, for the rest of the server and for Python callers. Modules inside the package import
each other directly.
"""

from serve_app.encoder.batch import Encoded
from serve_app.encoder.encoder import Encoder
from serve_app.encoder.engine import EncoderBrokenError, default_batch_tokens
from serve_app.encoder.loading import load_encoder

__all__ = ["Encoded", "Encoder", "EncoderBrokenError", "default_batch_tokens", "load_encoder"]
