"""Whether the vectors that come back are those that sentence-transformers gives for the same texts.

Asks while many other requests are under way, so that batches and their order are checked too.
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
_INPUTS = (1, 1, 1, 5)  # inputs of a request, in turn
# Least cosine to sentence-transformers in float32.
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999}


class WrongVectorsError(Exception):
    """A server is fast, and wrong."""


def sample(requests: Sequence[Requests]) -> list[str]:
    """Return texts of all workloads, in turn, so that neighbours have different lengths."""
    firsts = [[texts[0] for texts in one.texts[:SAMPLE]] for one in requests]
    mixed = [text for group in zip_longest(*firsts) for text in group if text is not None]
    return mixed[:SAMPLE]


def reference(texts: Sequence[str], directory: Path) -> Vectors:
    """Return what `SentenceTransformer.encode` gives, one text at a time, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors.npy")
        command = [sys.executable, "-m", "benchmarks.compare.check", str(directory), str(path)]
        subprocess.run(
            command, input=json.dumps(list(texts)), text=True, check=True, capture_output=True
        )
        vectors: Vectors = np.load(path)
    return vectors


def least_cosine(port: int, texts: Sequence[str], expected: Vectors) -> float:
    """Embed the texts, in requests of several sizes that are all under way at once, and compare."""
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
    """Return the least cosine.

    Raises:
        WrongVectorsError: it is less than the contender's type of numbers explains.
    """
    cosine = least_cosine(port, texts, expected)
    if not cosine >= LEAST_COSINE[contender.dtype]:
        raise WrongVectorsError(f"{contender.name}: least cosine {cosine:.6f}")
    return cosine


def _vectors(port: int, texts: Sequence[str]) -> Vectors:
    answer = post(port, body(texts, model=MODEL["name"]), timeout_s=60)
    if answer.status != 200:
        raise WrongVectorsError(f"status {answer.status} instead of vectors")
    data: list[dict[str, Any]] = json.loads(answer.content)["data"]
    written = [item["embedding"] for item in sorted(data, key=lambda item: int(item["index"]))]
    return np.stack([np.frombuffer(base64.b64decode(one), "<f4") for one in written])


def _main() -> None:
    from sentence_transformers import SentenceTransformer  # heavy, and only this process needs it

    model = SentenceTransformer(sys.argv[1], device="cpu")
    texts = json.load(sys.stdin)
    np.save(sys.argv[2], model.encode(texts, batch_size=1, normalize_embeddings=True))


if __name__ == "__main__":
    _main()
