"""LangChain's OpenAIEmbeddings: as it comes, which sends token ids of OpenAI's encoding, and without that."""

import json
import sys
from importlib.metadata import version

sys.path.pop(0)  # this folder, whose files have their packages' names

from langchain_openai import OpenAIEmbeddings

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])
IDS = sys.argv[5] == "ids"


def main() -> None:
    """Print the vectors."""
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=f"{URL}/v1", api_key="sk-any", check_embedding_ctx_length=IDS
    )
    vectors = {"documents": embeddings.embed_documents(TEXTS)}
    vectors["query"] = [embeddings.embed_query(text) for text in TEXTS]
    print(json.dumps({"version": version("langchain-openai"), "vectors": vectors}))


main()
