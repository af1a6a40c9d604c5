"""Call the server with LlamaIndex's NVIDIAEmbedding, which sends `input_type` and a word in `truncate`."""

import asyncio
import json
import sys
from importlib.metadata import version

sys.path.pop(0)

from llama_index.embeddings.nvidia import NVIDIAEmbedding

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])
OPTIONS = {"base_url": f"{URL}/v1", "api_key": "sk-any"}
LONG = "first " * 300 + "last " * 300


async def queries(embedding: NVIDIAEmbedding) -> list[list[float]]:
    """Embed concurrent queries. Unlike the synchronous methods, this sends the input type `query`."""
    rows = await asyncio.gather(*(embedding.aget_query_embedding(text) for text in TEXTS))
    return list(rows)


def main() -> None:
    """Print the vectors, also of an input cut at either side, and the error for one that is too long, as JSON."""
    embedding = NVIDIAEmbedding(model=MODEL, **OPTIONS)
    vectors = {
        "documents": embedding.get_text_embedding_batch(TEXTS),
        "query": [embedding.get_query_embedding(text) for text in TEXTS],
        "async": asyncio.run(queries(embedding)),
        "no model": NVIDIAEmbedding(**OPTIONS).get_text_embedding_batch(TEXTS),
    }
    truncated = [
        NVIDIAEmbedding(model=MODEL, truncate=word, **OPTIONS).get_query_embedding(LONG)
        for word in ("END", "START")
    ]
    too_long = ""
    try:
        embedding.get_query_embedding(LONG)
    except Exception as error:
        too_long = f"{type(error).__name__}: {error}"
    print(json.dumps({
        "version": version("llama-index-embeddings-nvidia"),
        "vectors": vectors,
        "truncated": truncated,
        "too_long": too_long,
    }))  # fmt: skip


main()
