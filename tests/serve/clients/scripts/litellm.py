"""Call the server with LiteLLM, through three of its providers."""

import json
import os
import sys
from importlib.metadata import version

sys.path.pop(0)
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

URL, MODEL = sys.argv[1:3]
TEXTS = json.loads(sys.argv[4])


def main() -> None:
    """Print the vectors and the error for an input that is too long, as JSON."""
    vectors = {}
    for provider in ("openai", "hosted_vllm", "infinity"):
        answer = litellm.embedding(
            model=f"{provider}/{MODEL}", input=TEXTS, api_base=f"{URL}/v1", api_key="sk-any"
        )
        vectors[provider] = [item["embedding"] for item in answer.data]
    too_long = ""
    try:
        litellm.embedding(
            model=f"openai/{MODEL}",
            input=["word " * 9000],
            api_base=f"{URL}/v1",
            api_key="sk-any",
        )
    except Exception as error:
        too_long = f"{type(error).__name__}: {error}"
    print(json.dumps({"version": version("litellm"), "vectors": vectors, "too_long": too_long}))


main()
