"""Decides which models embed.

The files alone decide:

- A model embeds if `modules.json` starts with sentence-transformers' Transformer, followed by a
  Pooling, or with a StaticEmbedding, and `config_sentence_transformers.json` does not declare a
  `model_type` other than SentenceTransformer.
- A SparseEncoder, a CrossEncoder, a multi-vector model and a Transformer without Pooling do not
  embed. Neither does a directory without `modules.json`, such as a classifier, a language model or
  a bare encoder: the server never guesses a pooling.
- A model that embeds with modules or settings that this server does not support fails the start.
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
    """Return why a model does not embed.

    None if it embeds, or if it would but needs modules that are not supported.
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
                f"{module.folder}: not supported: {module.kind} ({module.family}) as module {position} of modules.json"
            )
