"""A plain embeddings server, written as Ray Serve's documentation suggests: dynamic batching around `encode`.

It is the baseline for the comparison and shares no code with this project. It uses Ray Serve's defaults unless
the Serve config changes them: 5 concurrent requests, and 1 CPU and therefore 1 thread for the model. The
environment variable BENCH_MODEL names the model's directory.
"""

import asyncio
import base64
import os
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from sentence_transformers import SentenceTransformer

api = FastAPI()


class EmbeddingRequest(BaseModel):
    """The fields that the benchmark sends."""

    model: str
    input: str | list[str]
    encoding_format: str = "float"


# Defined before the deployment because Serve copies the FastAPI application when it applies the decorator.
def _serialize(vector: np.ndarray, request: EmbeddingRequest) -> str | list[float]:
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]


@serve.deployment
@serve.ingress(api)
class Embeddings:
    """HTTP and the model in the same replica."""

    def __init__(self) -> None:
        self.model = SentenceTransformer(os.environ["BENCH_MODEL"], device="cpu")

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def embed(self, texts: list[str]) -> list[np.ndarray]:
        """Encode a batch of texts."""
        return list(self.model.encode(texts, batch_size=64, normalize_embeddings=True))

    @api.post("/v1/embeddings")
    async def embeddings(self, request: EmbeddingRequest) -> dict[str, Any]:
        """Handle an embeddings request."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        vectors = await asyncio.gather(*(self.embed(text) for text in texts))
        data = [
            {"object": "embedding", "index": index, "embedding": _serialize(vector, request)}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "model": request.model, "data": data}


app = Embeddings.bind()  # type: ignore[attr-defined]
