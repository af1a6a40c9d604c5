"""Call the server with Semantic Kernel's text embedding, which uses OpenAI's client."""

import asyncio
import json
import sys
from importlib.metadata import version

sys.path.pop(0)

from openai import AsyncOpenAI
from semantic_kernel.connectors.ai.open_ai import OpenAITextEmbedding

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])


async def main() -> None:
    """Print the vectors as JSON."""
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="sk-any")
    embedding = OpenAITextEmbedding(ai_model_id=MODEL, async_client=client)
    rows = await embedding.generate_embeddings(TEXTS)
    vectors = {"documents": [[float(x) for x in row] for row in rows]}
    print(json.dumps({"version": version("semantic-kernel"), "vectors": vectors}))


asyncio.run(main())
