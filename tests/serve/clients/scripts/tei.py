"""Call the server with clients for text-embeddings-inference: huggingface_hub, LangChain and LlamaIndex."""

import json
import sys
from importlib.metadata import version

sys.path.pop(0)

from huggingface_hub import InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])
PACKAGES = (
    "huggingface_hub",
    "langchain-huggingface",
    "llama-index-embeddings-text-embeddings-inference",
)


def main() -> None:
    """Print the vectors as JSON."""
    hub = InferenceClient(model=f"{URL}/embed", token="sk-any")
    llama_index = TextEmbeddingsInference(model_name=MODEL, base_url=URL, auth_token="sk-any")
    langchain = HuggingFaceEndpointEmbeddings(model=URL, huggingfacehub_api_token="sk-any")
    vectors = {
        "huggingface_hub": hub.feature_extraction(TEXTS).tolist(),
        "huggingface_hub, one text": [hub.feature_extraction(one)[0].tolist() for one in TEXTS],
        "langchain": langchain.embed_documents(TEXTS),
        "langchain, one text": [langchain.embed_query(one) for one in TEXTS],
        "llama-index": llama_index.get_text_embedding_batch(TEXTS),
    }
    print(json.dumps({"version": ", ".join(map(version, PACKAGES)), "vectors": vectors}))


main()
