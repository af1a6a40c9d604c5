"""An embeddings server as Ray Serve's documentation would have one write it: dynamic batching around `encode`.

What this project is compared with; shares no code with it. Ray Serve's defaults hold (5 requests at a time, 1 CPU and
so 1 thread for the model) unless the Serve config says otherwise; where the model is comes from the environment.
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


# Stands before the deployment: Serve copies the application when it meets the decorator.
def _written(vector: np.ndarray, request: EmbeddingRequest) -> str | list[float]:
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]


@serve.deployment
@serve.ingress(api)
class Embeddings:
    """The one deployment: HTTP and model in the same replica."""

    def __init__(self) -> None:
        self.model = SentenceTransformer(os.environ["BENCH_MODEL"], device="cpu")

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def embed(self, texts: list[str]) -> list[np.ndarray]:
        """Return the vectors of a batch of texts."""
        return list(self.model.encode(texts, batch_size=64, normalize_embeddings=True))

    @api.post("/v1/embeddings")
    async def embeddings(self, request: EmbeddingRequest) -> dict[str, Any]:
        """Answer a request with the vectors of its inputs."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        vectors = await asyncio.gather(*(self.embed(text) for text in texts))
        data = [
            {"object": "embedding", "index": index, "embedding": _written(vector, request)}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "model": request.model, "data": data}


app = Embeddings.bind()  # type: ignore[attr-defined]
