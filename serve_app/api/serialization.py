"""Serializes responses: pydantic models as JSON, vectors as JSON floats or base64.

Vectors stay float32 buffers throughout: base64 encodes a slice of the buffer, and orjson writes the shortest decimal
that reads back as the same float32.
"""

import base64
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel
from starlette.responses import Response

from serve_app.messages import Vectors

# Vectors per call of orjson. orjson holds the GIL, so running it in a thread does not free the event loop: writing
# 2,048 vectors of 1,024 floats blocked the loop for 50 ms in a single call, and for 10 ms in slices of this size.
_VECTORS_PER_CALL = 64


def json_response(model: BaseModel) -> Response:
    """Return a 200 response with the model as JSON."""
    return Response(model.model_dump_json(), media_type="application/json")


def write_response(
    vectors: Vectors, *, encoding_format: str, model: str, prompt_tokens: int
) -> bytes:
    """Write the JSON of an embeddings response.

    Args:
        vectors: float32 [inputs, dimensions], contiguous, finite.
        encoding_format: `float`, or `base64`: little-endian float32 in the standard alphabet, padded.
        model: the served model's name.
        prompt_tokens: the number of tokens that the model processed.
    """
    entries = [
        {"embedding": row, "index": index, "object": "embedding"}
        for index, row in enumerate(_rows(vectors, encoding_format))
    ]
    rest = {
        "model": model,
        "object": "list",
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
    return b'{"data":%b,%b' % (_array(entries), orjson.dumps(rest)[1:])


def write_rows(vectors: Vectors, *, encoding_format: str) -> bytes:
    """Write only the vectors, as a JSON list. The arguments are those of `write_response`."""
    return _array(_rows(vectors, encoding_format))


def _rows(vectors: Vectors, encoding_format: str) -> list[Any]:
    return _base64_rows(vectors) if encoding_format == "base64" else list(vectors)


def _array(items: list[Any]) -> bytes:
    slices = [
        orjson.dumps(items[start : start + _VECTORS_PER_CALL], option=orjson.OPT_SERIALIZE_NUMPY)[
            1:-1
        ]
        for start in range(0, len(items), _VECTORS_PER_CALL)
    ]
    return b"[%b]" % b",".join(slices)


def _base64_rows(vectors: Vectors) -> list[str]:
    buffer = np.ascontiguousarray(vectors, dtype="<f4").data.cast("B")
    size = 4 * vectors.shape[1]
    return [
        base64.b64encode(buffer[start : start + size]).decode("ascii")
        for start in range(0, size * len(vectors), size)
    ]
