"""Decides which models embed.

Only the model's files decide:

- A model embeds if it meets two conditions. First, `modules.json` starts with a StaticEmbedding, or
  starts with sentence-transformers' Transformer and also lists a Pooling. Second,
  `config_sentence_transformers.json` does not declare a `model_type` other than
  SentenceTransformer.
- A SparseEncoder, a CrossEncoder, a multi-vector model and a Transformer without Pooling do not
  embed.
- A directory without `modules.json`, such as that of a classifier, a language model or a bare
  encoder, does not embed either: the server never guesses a pooling.
- If a model embeds, but needs modules or settings that this server does not support, the server
  does not start.
"""

from collections.abc import Sequence
from pathlib import Path

from serve_app.checkpoints.model_files import Json, Module, model_config, transformer_settings
from serve_app.errors import ModelLoadError

FIRST_MODULES = frozenset({"Transformer", "StaticEmbedding"})
LATER_MODULES = frozenset({"Pooling", "Dense", "LayerNorm", "Dropout", "Normalize"})
OTHER_FAMILIES = frozenset({"cross_encoder", "multi_vector_encoder", "sparse_encoder"})
FEATURES = "feature-extraction"


def reason_not_to_embed(directory: Path, settings: Json, modules: Sequence[Module]) -> str | None:
    """Return the reason why a model does not embed, or None if it embeds.

    The result is also None for an embedding model with unsupported modules, which `check_supported`
    rejects.
    """
    if not modules:
        name = ", ".join(model_config(directory).get("architectures") or []) or "the model"
        return f"{name} has no modules.json, which would define the pooling"
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        return f"config_sentence_transformers.json declares a {kind}, not a SentenceTransformer"
    for module in modules:
        if module.family in OTHER_FAMILIES:
            return f"modules.json lists {module.kind} from sentence-transformers' {module.family}"
    if modules[0].kind != "Transformer":
        return None
    task = transformer_settings(modules[0]).get("transformer_task", FEATURES)
    if task != FEATURES:
        return f"its Transformer is configured for {task}, not for {FEATURES}"
    has_pooling = any(module.kind == "Pooling" for module in modules)
    return (
        None if has_pooling else "modules.json lists no Pooling, which makes one vector per input"
    )


def check_supported(modules: Sequence[Module]) -> None:
    """Check that the server supports all modules of a model that embeds.

    Raises:
        ModelLoadError: a module is not supported.
    """
    for position, module in enumerate(modules):
        supported = FIRST_MODULES if position == 0 else LATER_MODULES
        if module.kind not in supported:
            raise ModelLoadError(
                f"{module.folder}: unsupported module: {module.kind} ({module.family}), at index {position} of "
                "modules.json"
            )
