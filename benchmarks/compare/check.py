"""Check that a server returns the same vectors as sentence-transformers for the same texts.

Many requests are in flight at once, so the check also covers batching and the order of results.
"""

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.compare.contenders import MODEL, Contender, post
from benchmarks.workloads import Requests, body

Vectors = npt.NDArray[np.float32]

SAMPLE = 48
_INPUTS = (1, 1, 1, 5)  # inputs per request, repeated
# Minimum cosine similarity to sentence-transformers in float32, by dtype.
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999}


class WrongVectorsError(Exception):
    """A server returned wrong vectors, so its speed is meaningless."""


def sample(requests: Sequence[Requests]) -> list[str]:
    """Return texts of all workloads, interleaved so that neighbours differ in length."""
    firsts = [[texts[0] for texts in one.texts[:SAMPLE]] for one in requests]
    mixed = [text for group in zip_longest(*firsts) for text in group if text is not None]
    return mixed[:SAMPLE]


def reference(texts: Sequence[str], directory: Path) -> Vectors:
    """Encode the texts one at a time with `SentenceTransformer.encode`, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors.npy")
        command = [sys.executable, "-m", "benchmarks.compare.check", str(directory), str(path)]
        subprocess.run(
            command, input=json.dumps(list(texts)), text=True, check=True, capture_output=True
        )
        vectors: Vectors = np.load(path)
    return vectors


def least_cosine(port: int, texts: Sequence[str], expected: Vectors) -> float:
    """Embed the texts in concurrent requests of several sizes and return the lowest cosine similarity."""
    parts: list[list[str]] = []
    rest = list(texts)
    while rest:
        size = _INPUTS[len(parts) % len(_INPUTS)]
        parts.append(rest[:size])
        rest = rest[size:]
    with ThreadPoolExecutor(len(parts)) as threads:
        answers = threads.map(lambda part: _vectors(port, part), parts)
        received = np.concatenate(list(answers))
    received /= np.linalg.norm(received, axis=1, keepdims=True)
    return float((received * expected).sum(axis=1).min())


def check_vectors(
    contender: Contender, port: int, texts: Sequence[str], expected: Vectors
) -> float:
    """Return the lowest cosine similarity of the sample.

    Raises:
        WrongVectorsError: The similarity is below the limit for the contender's dtype.
    """
    cosine = least_cosine(port, texts, expected)
    if not cosine >= LEAST_COSINE[contender.dtype]:
        raise WrongVectorsError(f"{contender.name}: lowest cosine similarity is {cosine:.6f}")
    return cosine


def _vectors(port: int, texts: Sequence[str]) -> Vectors:
    answer = post(port, body(texts, model=MODEL["name"]), timeout_s=60)
    if answer.status != 200:
        raise WrongVectorsError(f"got status {answer.status} instead of vectors")
    data: list[dict[str, Any]] = json.loads(answer.content)["data"]
    encoded = [item["embedding"] for item in sorted(data, key=lambda item: int(item["index"]))]
    return np.stack([np.frombuffer(base64.b64decode(one), "<f4") for one in encoded])


def _main() -> None:
    from sentence_transformers import SentenceTransformer  # slow to import; only needed here

    model = SentenceTransformer(sys.argv[1], device="cpu")
    texts = json.load(sys.stdin)
    np.save(sys.argv[2], model.encode(texts, batch_size=1, normalize_embeddings=True))


if __name__ == "__main__":
    _main()
