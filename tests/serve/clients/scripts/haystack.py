"""Call the server with Haystack's text embedder and document embedder."""

import json
import os
import sys
from importlib.metadata import version

sys.path.pop(0)
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])


def main() -> None:
    """Print the vectors as JSON."""
    options = {"api_key": Secret.from_token("sk-any"), "model": MODEL, "api_base_url": f"{URL}/v1"}
    text = OpenAITextEmbedder(**options)
    documents = OpenAIDocumentEmbedder(**options, raise_on_failure=True, progress_bar=False)
    embedded = documents.run([Document(content=one) for one in TEXTS])["documents"]
    vectors = {
        "documents": [document.embedding for document in embedded],
        "query": [text.run(one)["embedding"] for one in TEXTS],
    }
    print(json.dumps({"version": version("haystack-ai"), "vectors": vectors}))


main()
