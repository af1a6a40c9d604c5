"""What a model's files say about it: whether it embeds, and how. Reads no weights.

The rule, from the files alone: a model embeds when its `modules.json` begins with sentence-transformers' Transformer,
followed by a Pooling, or with StaticEmbedding, and `config_sentence_transformers.json` names no other kind of model
than SentenceTransformer. A SparseEncoder, a CrossEncoder, a multi-vector model, a Transformer without Pooling, and
every directory without `modules.json` - a classifier, a language model, a bare encoder too - does not embed: pooling
is never made up. A model that would embed, but through modules or settings that this server does not run, is an error
at start.

Knows nothing of tensors, and imports neither torch nor transformers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.checkpoints.source import resolve
from serve_app.errors import ModelLoadError

Json = dict[str, Any]

# The names under which sentence-transformers has saved the settings of its Transformer, as its own loader tries them.
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
FIRST_MODULES = frozenset({"Transformer", "StaticEmbedding"})
LATER_MODULES = frozenset({"Pooling", "Dense", "LayerNorm", "Dropout", "Normalize"})
OTHER_FAMILIES = frozenset({"cross_encoder", "multi_vector_encoder", "sparse_encoder"})
FEATURES = "feature-extraction"
PADDING_SETTINGS = frozenset({"padding", "padding_side"})
LEGACY_POOLING_FLAGS = (
    "pooling_mode_cls_token",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)
# Model types whose `n_positions` transformers also calls `max_position_embeddings`.
N_POSITIONS_MODELS = frozenset({"codegen", "ctrl", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"})
# transformers writes 1e30 for "no limit", and takes everything above this for it.
NO_LIMIT = 10**20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as its files describe it.

    Attributes:
        directory: where the small files lie.
        embeds: it is a dense sentence-transformers embedding model.
        reason: one sentence on why it does or does not.
        dimensions: components of its vectors; None when it does not embed.
        max_input_tokens: most tokens of an input, special tokens included, as
            `SentenceTransformer.max_seq_length`; None when there is no limit.
        prompts: texts by name, as `SentenceTransformer.prompts`: `query` and `document` are always there, empty unless
            the model fills them.
        include_prompt: the pooling counts the prompt's tokens.
        adds_special_tokens: False for StaticEmbedding, which reads the bare tokens.
        lowercase: `do_lower_case` of `sentence_bert_config.json`: text is lower-cased before all else.
        tokenizer_directory: where the tokenizer's files lie, for the few models that give them a folder of their own;
            None for `directory`.
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


@dataclass(frozen=True, slots=True)
class _Module:
    """One line of `modules.json`: its class, the package of sentence-transformers that brings it, its folder."""

    kind: str
    family: str
    folder: Path

    def config(self) -> Json:
        """Return what the module's own `config.json` holds."""
        config = _read_json(self.folder / "config.json")
        if not isinstance(config, dict):
            raise ModelLoadError(
                f"{self.folder / 'config.json'} is missing or broken; {self.kind} needs it"
            )
        return config

    def integer(self, *names: str) -> int:
        """Return the first of these settings that the module has."""
        config = self.config()
        for name in names:
            if isinstance(config.get(name), int):
                return int(config[name])
        raise ModelLoadError(f"{self.folder / 'config.json'} has no {' or '.join(names)}")


def read_checkpoint(source: str, *, revision: str | None = None) -> Checkpoint:
    """Describe a model from its files; see `resolve` for what a source is.

    Raises:
        ModelLoadError: the files are missing, broken, or ask for something that is not supported.
    """
    directory = resolve(source, revision=revision)
    settings = _read_json(directory / "config_sentence_transformers.json") or {}
    modules = _read_modules(directory)
    if reason := _why_it_does_not_embed(directory, settings, modules):
        return Checkpoint(directory, embeds=False, reason=reason)
    _check_supported(modules)
    first = modules[0]
    static = first.kind == "StaticEmbedding"
    if static:  # the shape of its weights is the only place that tells its dimensions
        resolve(source, revision=revision, weights=True)
    transformer = {} if static else _transformer_settings(first)
    dimensions = _dimensions(modules)
    return Checkpoint(
        directory,
        embeds=True,
        reason=f"modules.json makes one vector of an input: {', '.join(m.kind for m in modules)}",
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


def _read_json(path: Path) -> Any:
    """Return what a JSON file holds, or None when it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def _model_config(directory: Path) -> Json:
    config = _read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise ModelLoadError(
            f"{directory} has no config.json: it is no model, or an adapter that has to be merged into its model first"
        )
    return config


def _read_modules(directory: Path) -> list[_Module]:
    """Return the lines of `modules.json`, none when there is no such file."""
    path = directory / "modules.json"
    lines = _read_json(path)
    if lines is None:
        return []
    try:
        modules = [(line["type"].split("."), directory / line["path"]) for line in lines]
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path} is no list of modules with type and path") from error
    if not modules:
        raise ModelLoadError(f"{path} lists no module")
    return [
        _Module(names[-1], names[1], folder)
        if names[0] == "sentence_transformers" and len(names) > 1
        else _Module(".".join(names), "custom code", folder)
        for names, folder in modules
    ]


def _why_it_does_not_embed(
    directory: Path, settings: Json, modules: Sequence[_Module]
) -> str | None:
    """Return one sentence when the files are of a model that does not embed, None when of one that does or would."""
    if not modules:
        name = ", ".join(_model_config(directory).get("architectures") or []) or "a bare model"
        return (
            f"it is {name} without modules.json, so nothing says how its output becomes one vector"
        )
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        return (
            f"config_sentence_transformers.json says that it is a {kind}, not a SentenceTransformer"
        )
    for module in modules:
        if module.family in OTHER_FAMILIES:
            return f"modules.json lists {module.kind} of sentence-transformers' {module.family}"
    if modules[0].kind != "Transformer":
        return None
    task = _transformer_settings(modules[0]).get("transformer_task", FEATURES)
    if task != FEATURES:
        return f"its Transformer is set up for {task}, not for {FEATURES}"
    pools = any(module.kind == "Pooling" for module in modules)
    return (
        None
        if pools
        else "modules.json lists no Pooling, so nothing says how its output becomes one vector"
    )


def _check_supported(modules: Sequence[_Module]) -> None:
    for position, module in enumerate(modules):
        if module.kind not in (LATER_MODULES if position else FIRST_MODULES):
            raise ModelLoadError(
                f"{module.folder}: not supported: {module.kind} ({module.family}) as module {position} of modules.json"
            )


def _transformer_settings(module: _Module) -> Json:
    """Return the Transformer's own settings, checked for those that this server does not apply."""
    paths = [module.folder / name for name in TRANSFORMER_CONFIGS]
    settings: Json = next((found for path in paths if (found := _read_json(path))), {})
    modalities = settings.get("modality_config", {"text": {}})
    if "message" in modalities or "text" not in modalities:
        raise ModelLoadError(
            f"{module.folder}: not supported: an input of the kind {', '.join(modalities)}; only plain text is"
        )
    applied = settings.get("processing_kwargs") or {}
    unknown = {*applied.get("text", {}), *applied.get("common", {})} - PADDING_SETTINGS
    if unknown:
        raise ModelLoadError(
            f"{module.folder}: not supported: processing_kwargs {', '.join(sorted(unknown))}"
        )
    return settings


def _max_input_tokens(folder: Path, transformer: Json) -> int | None:
    """Return what `Transformer.max_seq_length` will say, or None for no limit."""
    arguments = transformer.get("processor_kwargs") or transformer.get("tokenizer_args") or {}
    limit = arguments.get("model_max_length", transformer.get("max_seq_length"))
    if limit is None:
        tokenizer = _read_json(folder / "tokenizer_config.json") or {}
        config = _model_config(folder)
        positions = config.get("max_position_embeddings")
        if positions is None and config.get("model_type") in N_POSITIONS_MODELS:
            positions = config.get("n_positions")
        limit = tokenizer.get("model_max_length") or tokenizer.get("max_len") or NO_LIMIT
        limit = limit if positions in {None, -1} else min(limit, positions)
    return None if limit >= NO_LIMIT else int(limit)


def _dimensions(modules: Sequence[_Module]) -> int:
    """Return the components of the vectors: those of the last module that says how many it makes."""
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
    raise AssertionError("a model that embeds has a Pooling or is static")


def _pooling_modes(config: Json) -> int:
    mode = config.get("pooling_mode")
    if mode is not None:
        return 1 if isinstance(mode, str) else len(mode)
    return sum(bool(config.get(flag)) for flag in LEGACY_POOLING_FLAGS) or 1


def _static_dimensions(path: Path) -> int:
    """Return the width of a StaticEmbedding, from the header of its weights: a length of 8 bytes, then JSON."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shape = (header.get("embedding.weight") or header["embeddings"])["shape"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(
            f"{path} cannot be read as the weights of a StaticEmbedding: {error}"
        ) from error
    return int(shape[1])
