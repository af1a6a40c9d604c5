"""Which clients are run against the server, and what a user has to set in each beside its base URL, key and model.

The README's table is made of this, the tests run it, and the locks beside this file say in which versions.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@dataclass(frozen=True, slots=True)
class Client:
    """A client, as a script runs it.

    Attributes:
        name: what people call it.
        script: the file under scripts/.
        packages: the distributions that it is made of.
        lock: the lock that pins them; the environment it is installed into has the same name.
        ways: what the script tries.
        settings: what to set beside base URL, key and model.
        arguments: given to the script behind those that all get.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    lock: str
    ways: str
    settings: str = "nothing"
    arguments: tuple[str, ...] = ()

    @property
    def versions(self) -> str:
        """The versions that the lock pins."""
        return ", ".join(_pinned(self.lock)[package] for package in self.packages)

    @property
    def command(self) -> list[str]:
        """What runs its script."""
        script = HERE / "scripts" / self.script
        if script.suffix == ".mjs":
            return ["node", str(script)]
        return [str(ROOT / ".venv-clients" / self.lock / "bin" / "python"), str(script)]


_OPENAI = "sync, 64 at once, Azure, raw responses, errors"
_LISTS = "documents, queries"
_NVIDIA = "documents, queries, async, without a model, each `truncate`, the error of a long text"

CLIENTS = (
    Client("openai-python", "openai_python.py", ("openai",), "frameworks", _OPENAI),
    Client("openai-python", "openai_python.py", ("openai",), "openai-1", _OPENAI),
    Client("openai-node", "node.mjs", ("openai",), "node", "base64 and floats, errors"),
    Client(
        "AI SDK, `@ai-sdk/openai-compatible`",
        "node.mjs",
        ("@ai-sdk/openai-compatible", "ai"),
        "node",
        "`embedMany`, errors",
        "nothing; `http.error_format: openai` on the server for its words in errors",
    ),
    Client(
        "LangChain, `OpenAIEmbeddings`",
        "langchain_openai.py",
        ("langchain-openai",),
        "frameworks",
        "documents, queries, as token ids, which is its default",
        "nothing; the server needs the extra `cl100k` and the encoding's file: see Token ids",
        ("ids",),
    ),
    Client(
        "LangChain, `OpenAIEmbeddings`",
        "langchain_openai.py",
        ("langchain-openai",),
        "frameworks",
        _LISTS,
        "`check_embedding_ctx_length=False`",
        ("texts",),
    ),
    Client(
        "LangChain, `NVIDIAEmbeddings`",
        "langchain_nvidia.py",
        ("langchain-nvidia-ai-endpoints",),
        "frameworks",
        _NVIDIA,
    ),
    Client(
        "LlamaIndex, `OpenAILikeEmbedding`",
        "llama_index.py",
        ("llama-index-embeddings-openai-like",),
        "frameworks",
        _LISTS,
    ),
    Client(
        "LlamaIndex, `NVIDIAEmbedding`",
        "llama_index_nvidia.py",
        ("llama-index-embeddings-nvidia",),
        "frameworks",
        _NVIDIA,
        "nothing; for models with a prompt for queries, `aget_query_embedding`, because `get_query_embedding` sends "
        "`input_type: passage`",
    ),
    Client(
        "Haystack, `OpenAITextEmbedder`, `OpenAIDocumentEmbedder`",
        "haystack.py",
        ("haystack-ai",),
        "frameworks",
        _LISTS,
    ),
    Client(
        "LiteLLM, `openai/`, `hosted_vllm/`, `infinity/`",
        "litellm.py",
        ("litellm",),
        "frameworks",
        "lists, the error of a text that is too long",
    ),
    Client(
        "Chroma, `OpenAIEmbeddingFunction`",
        "chroma.py",
        ("chromadb",),
        "more",
        "documents",
    ),
    Client(
        "Semantic Kernel, `OpenAITextEmbedding`",
        "semantic_kernel.py",
        ("semantic-kernel",),
        "more",
        "documents",
        "an `AsyncOpenAI` with the base URL",
    ),
    Client(
        "text-embeddings-inference's: huggingface_hub, LangChain, LlamaIndex",
        "tei.py",
        (
            "huggingface-hub",
            "langchain-huggingface",
            "llama-index-embeddings-text-embeddings-inference",
        ),
        "more",
        "lists, single texts",
        "the URL without `/v1`, and numpy for huggingface_hub; LangChain's class takes no URL from 1.2.2 on",
    ),
)


def compatibility_table() -> str:
    """Return the README's table."""
    rows = [
        "| client | version | tried | to be set beside base URL, key and model |",
        "|---|---|---|---|",
    ]
    rows += [f"| {c.name} | {c.versions} | {c.ways} | {c.settings} |" for c in CLIENTS]
    return "\n".join(rows)


def _pinned(lock: str) -> dict[str, str]:
    """Return what a lock pins, version by name."""
    if lock == "node":
        packages = json.loads((HERE / "scripts" / "package-lock.json").read_text())["packages"]
        return {
            name.removeprefix("node_modules/"): found["version"]
            for name, found in packages.items()
            if name
        }
    lines = (HERE / f"{lock}.lock").read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9_.-]+)(?:\[.*\])?==(\S+)", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}
