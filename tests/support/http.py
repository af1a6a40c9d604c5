"""Requests to the embeddings route, and the vectors of their answers."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

PAGE_KEYS = {"error", "error_type", "message", "type", "param", "code"}


def post(url: str, body: Any, **options: Any) -> requests.Response:
    """POST a body to the route."""
    return requests.post(f"{url}/v1/embeddings", json=body, timeout=170, **options)


def vectors(answer: requests.Response) -> npt.NDArray[np.float32]:
    """Return the vectors of an answer, whatever their encoding."""
    assert answer.status_code == 200, answer.text
    rows = [item["embedding"] for item in answer.json()["data"]]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, np.float32)
