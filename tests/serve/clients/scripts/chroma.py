"""Call the server with Chroma's embedding function for the OpenAI API."""

import json
import sys
from importlib.metadata import version

from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])


def main() -> None:
    """Print the vectors as JSON."""
    embed = OpenAIEmbeddingFunction(api_key="sk-any", api_base=f"{URL}/v1", model_name=MODEL)
    vectors = {"documents": [[float(x) for x in row] for row in embed(TEXTS)]}
    print(json.dumps({"version": version("chromadb"), "vectors": vectors}))


main()
