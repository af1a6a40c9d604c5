"""Call the server with LangChain's NVIDIAEmbeddings, which sends `input_type` and a word in `truncate`."""

import asyncio
import json
import sys
from importlib.metadata import version

sys.path.pop(0)

from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])
OPTIONS = {"base_url": f"{URL}/v1", "api_key": "sk-any"}
LONG = "first " * 300 + "last " * 300


def main() -> None:
    """Print the vectors, also of an input cut at either side, and the error for one that is too long, as JSON."""
    embeddings = NVIDIAEmbeddings(model=MODEL, **OPTIONS)
    vectors = {
        "documents": embeddings.embed_documents(TEXTS),
        "query": [embeddings.embed_query(text) for text in TEXTS],
        "async": asyncio.run(embeddings.aembed_documents(TEXTS)),
        "no model": NVIDIAEmbeddings(**OPTIONS).embed_documents(TEXTS),
    }
    truncated = [
        NVIDIAEmbeddings(model=MODEL, truncate=word, **OPTIONS).embed_query(LONG)
        for word in ("END", "START")
    ]
    too_long = ""
    try:
        embeddings.embed_query(LONG)
    except Exception as error:
        too_long = f"{type(error).__name__}: {error}"
    print(json.dumps({
        "version": version("langchain-nvidia-ai-endpoints"),
        "vectors": vectors,
        "truncated": truncated,
        "too_long": too_long,
    }))  # fmt: skip


main()
