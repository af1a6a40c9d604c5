"""Call the server with LlamaIndex's embedding class for OpenAI-compatible servers."""

import json
import sys
from importlib.metadata import version

sys.path.pop(0)

from llama_index.embeddings.openai_like import OpenAILikeEmbedding

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])


def main() -> None:
    """Print the vectors as JSON."""
    embedding = OpenAILikeEmbedding(
        model_name=MODEL, api_base=f"{URL}/v1", api_key="sk-any", embed_batch_size=10
    )
    vectors = {
        "documents": embedding.get_text_embedding_batch(TEXTS),
        "query": [embedding.get_query_embedding(text) for text in TEXTS],
    }
    name = "llama-index-embeddings-openai-like"
    print(json.dumps({"version": version(name), "vectors": vectors}))


main()
