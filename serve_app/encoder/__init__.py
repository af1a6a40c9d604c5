"""The loaded model: ids to vectors. The only importer of torch, sentence-transformers and OpenVINO; works without Ray.

What the rest of the server and Python callers use is named here; the rooms behind it know each other by their own
names. Knows nothing of queues, requests, metrics or event loops.
"""

from serve_app.encoder.batch import Encoded
from serve_app.encoder.encoder import Encoder
from serve_app.encoder.engine import EncoderBrokenError, default_batch_tokens
from serve_app.encoder.loading import load_encoder

__all__ = ["Encoded", "Encoder", "EncoderBrokenError", "default_batch_tokens", "load_encoder"]
