import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.serialization import write_response
from serve_app.messages import Vectors
from serve_app.service.postprocess import finish
from tests.support.strategies import vectors


@given(vectors, st.booleans())
def test_json_floats_parse_to_the_same_float32(vectors: Vectors, is_cut: bool) -> None:  # noqa: FBT001
    sent = finish(vectors, dimensions=1 if is_cut else None, normalize=False)
    sent.setflags(write=False)

    body = write_response(sent, encoding_format="float", model="m", prompt_tokens=3)

    rows = [entry["embedding"] for entry in json.loads(body)["data"]]
    assert np.array(rows, np.float32).tobytes() == sent.tobytes()


@given(vectors, st.booleans())
def test_base64_decodes_to_the_same_bytes(vectors: Vectors, is_cut: bool) -> None:  # noqa: FBT001
    sent = finish(vectors, dimensions=1 if is_cut else None, normalize=False)
    sent.setflags(write=False)

    body = write_response(sent, encoding_format="base64", model="m", prompt_tokens=3)

    rows = [entry["embedding"] for entry in json.loads(body)["data"]]
    decoded = b"".join(base64.b64decode(row, validate=True) for row in rows)
    assert decoded == sent.astype("<f4").tobytes()


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_a_response_has_exactly_the_documented_keys(encoding_format: str) -> None:
    vectors = np.ones((2, 3), np.float32)

    body = json.loads(
        write_response(vectors, encoding_format=encoding_format, model="m", prompt_tokens=3)
    )

    embeddings = [entry.pop("embedding") for entry in body["data"]]
    assert len(embeddings) == 2
    assert body == {
        "data": [{"index": 0, "object": "embedding"}, {"index": 1, "object": "embedding"}],
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


def test_many_vectors_form_one_list_in_order() -> None:
    """They are serialized in slices."""
    vectors = np.arange(400, dtype=np.float32).reshape(200, 2)

    data = json.loads(write_response(vectors, encoding_format="float", model="m", prompt_tokens=3))[
        "data"
    ]

    assert [entry["index"] for entry in data] == list(range(200))
    assert [entry["embedding"] for entry in data] == vectors.tolist()
