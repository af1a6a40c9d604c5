"""Reads a model's metadata from its files: dimensions, input limit, prompts.

This module does not read weights. It does not import torch or transformers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.checkpoints.embedding_models import check_supported, reason_not_to_embed
from serve_app.checkpoints.model_files import (
    Json,
    Module,
    model_config,
    read_json,
    read_modules,
    transformer_settings,
)
from serve_app.checkpoints.source import resolve
from serve_app.errors import ModelLoadError

LEGACY_POOLING_FLAGS = (
    "pooling_mode_cls_token",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)
# Model types for which transformers maps `max_position_embeddings` to `n_positions`.
N_POSITIONS_MODELS = frozenset({"codegen", "ctrl", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"})
# transformers writes 1e30 for "no limit" and treats any value above 1e20 as unlimited.
NO_LIMIT = 10**20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's metadata, read from its files.

    Attributes:
        directory: the directory that contains the configuration files.
        embeds: whether the model is a dense sentence-transformers embedding model.
        reason: the reason why the model does or does not embed, as a clause without a final period.
        dimensions: number of components in a vector; None if the model does not embed.
        max_input_tokens: maximum length of an input, special tokens included, as in
            `SentenceTransformer.max_seq_length`; None if there is no limit.
        prompts: prompt texts by name, as in `SentenceTransformer.prompts`. `query` and `document`
            always exist; they are empty unless the model defines them.
        include_prompt: whether the pooling includes the prompt's tokens.
        adds_special_tokens: False for a StaticEmbedding, which reads no special tokens.
        lowercase: whether to lower-case the text before tokenization: `do_lower_case` in
            `sentence_bert_config.json`.
        tokenizer_directory: the directory that contains the tokenizer's files; None for
            `directory`. A few models keep these files in a separate folder.
    """

    directory: Path
    embeds: bool
    reason: str
    dimensions: int | None = None
    max_input_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    include_prompt: bool = True
    adds_special_tokens: bool = True
    lowercase: bool = False
    tokenizer_directory: Path | None = None


def read_checkpoint(source: str, *, revision: str | None = None) -> Checkpoint:
    """Read a model's metadata from its files.

    Args:
        source: see `serve_app.checkpoints.source.resolve`.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ModelLoadError: the files are missing or invalid, or need an unsupported module or setting.
    """
    directory = resolve(source, revision=revision)
    settings = read_json(directory / "config_sentence_transformers.json") or {}
    modules = read_modules(directory)
    if reason := reason_not_to_embed(directory, settings, modules):
        return Checkpoint(directory, embeds=False, reason=reason)
    check_supported(modules)
    first = modules[0]
    static = first.kind == "StaticEmbedding"
    if static:  # its dimensions are only known from the shape of its weights
        resolve(source, revision=revision, weights=True)
    transformer = {} if static else transformer_settings(first)
    dimensions = _dimensions(modules)
    return Checkpoint(
        directory,
        embeds=True,
        reason=f"modules.json lists an embedding model: {', '.join(m.kind for m in modules)}",
        dimensions=min(dimensions, settings.get("truncate_dim") or dimensions),
        max_input_tokens=None if static else _max_input_tokens(first.folder, transformer),
        prompts={
            name: text or ""
            for name, text in (
                {"query": "", "document": ""} | (settings.get("prompts") or {})
            ).items()
        },
        include_prompt=all(
            module.config().get("include_prompt", True)
            for module in modules
            if module.kind == "Pooling"
        ),
        adds_special_tokens=not static,
        lowercase=bool(transformer.get("do_lower_case", False)),
        tokenizer_directory=first.folder,
    )


def _max_input_tokens(folder: Path, transformer: Json) -> int | None:
    """Return the `max_seq_length` that the loaded Transformer will have, or None if it has no limit."""
    arguments = transformer.get("processor_kwargs") or transformer.get("tokenizer_args") or {}
    limit = arguments.get("model_max_length", transformer.get("max_seq_length"))
    if limit is None:
        tokenizer = read_json(folder / "tokenizer_config.json") or {}
        config = model_config(folder)
        positions = config.get("max_position_embeddings")
        if positions is None and config.get("model_type") in N_POSITIONS_MODELS:
            positions = config.get("n_positions")
        limit = tokenizer.get("model_max_length") or tokenizer.get("max_len") or NO_LIMIT
        limit = limit if positions in {None, -1} else min(limit, positions)
    return None if limit >= NO_LIMIT else int(limit)


def _dimensions(modules: Sequence[Module]) -> int:
    """Return the number of components in a vector.

    The last module that declares its output width decides.
    """
    for module in reversed(modules):
        if module.kind == "Pooling":
            width = module.integer("embedding_dimension", "word_embedding_dimension")
            return width * _pooling_modes(module.config())
        if module.kind == "Dense":
            return module.integer("out_features")
        if module.kind == "LayerNorm":
            return module.integer("dimension")
        if module.kind == "StaticEmbedding":
            return _static_dimensions(module.folder / "model.safetensors")
    raise AssertionError("an embedding model has a Pooling or a StaticEmbedding")


def _pooling_modes(config: Json) -> int:
    """Return how many pooling modes are concatenated."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return 1 if isinstance(mode, str) else len(mode)
    modes = [flag for flag in LEGACY_POOLING_FLAGS if config.get(flag)]
    return max(len(modes), 1)


def _static_dimensions(path: Path) -> int:
    """Return the vector width from the safetensors header: its length in 8 bytes, then JSON."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shape = (header.get("embedding.weight") or header["embeddings"])["shape"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(
            f"{path} cannot be read as StaticEmbedding weights: {error}"
        ) from error
    return int(shape[1])
