"""Call the server with LangChain's OpenAIEmbeddings, which sends OpenAI token ids by default, or with texts."""

import json
import sys
from importlib.metadata import version

sys.path.pop(0)  # the files in this folder would shadow the packages of the same name

from langchain_openai import OpenAIEmbeddings

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])
IDS = sys.argv[5] == "ids"


def main() -> None:
    """Print the vectors as JSON."""
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=f"{URL}/v1", api_key="sk-any", check_embedding_ctx_length=IDS
    )
    vectors = {"documents": embeddings.embed_documents(TEXTS)}
    vectors["query"] = [embeddings.embed_query(text) for text in TEXTS]
    print(json.dumps({"version": version("langchain-openai"), "vectors": vectors}))


main()
