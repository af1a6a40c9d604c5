"""Send requests to the embeddings route and decode the vectors of the responses."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

FLAT_ERROR_KEYS = {"error", "error_type", "message", "type", "param", "code"}


def post(url: str, body: Any, **options: Any) -> requests.Response:
    """POST a JSON body to the embeddings route."""
    return requests.post(f"{url}/v1/embeddings", json=body, timeout=170, **options)


def vectors(answer: requests.Response) -> npt.NDArray[np.float32]:
    """Decode the vectors of a response, which may be base64 or lists of floats."""
    assert answer.status_code == 200, answer.text
    rows = [item["embedding"] for item in answer.json()["data"]]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, np.float32)
