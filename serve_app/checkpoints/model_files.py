"""A model's configuration files: `modules.json`, and the settings of each module."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import ModelLoadError

Json = dict[str, Any]

# File names for the Transformer's settings, in the order in which sentence-transformers tries them.
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

PADDING_SETTINGS = frozenset({"padding", "padding_side"})


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of `modules.json`: the module's class, sentence-transformers subpackage and folder."""

    kind: str
    family: str
    folder: Path

    def config(self) -> Json:
        """Return the content of the module's `config.json`."""
        config = read_json(self.folder / "config.json")
        if not isinstance(config, dict):
            raise ModelLoadError(
                f"{self.folder / 'config.json'} is missing or invalid; the {self.kind} module needs it"
            )
        return config

    def integer(self, *names: str) -> int:
        """Return the first of these settings that is an integer."""
        config = self.config()
        for name in names:
            if isinstance(config.get(name), int):
                return int(config[name])
        raise ModelLoadError(f"{self.folder / 'config.json'} has no {' or '.join(names)}")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def model_config(directory: Path) -> Json:
    """Return the content of the model's `config.json`.

    Raises:
        ModelLoadError: the file does not exist or is invalid.
    """
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise ModelLoadError(
            f"{directory} has no config.json: it is not a model, or it is an adapter, which must be "
            "merged into its base model first"
        )
    return config


def read_modules(directory: Path) -> list[Module]:
    """Return the entries of `modules.json`; an empty list if the file does not exist."""
    path = directory / "modules.json"
    entries = read_json(path)
    if entries is None:
        return []
    try:
        modules = [(entry["type"].split("."), directory / entry["path"]) for entry in entries]
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path} is not a list of modules with `type` and `path`") from error
    if not modules:
        raise ModelLoadError(f"{path} lists no modules")
    return [
        Module(names[-1], names[1], folder)
        if names[0] == "sentence_transformers" and len(names) > 1
        else Module(".".join(names), "custom code", folder)
        for names, folder in modules
    ]


def transformer_settings(module: Module) -> Json:
    """Return the Transformer's settings.

    Raises:
        ModelLoadError: a setting is not supported.
    """
    paths = [module.folder / name for name in TRANSFORMER_CONFIGS]
    settings: Json = next((content for path in paths if (content := read_json(path))), {})
    modalities = settings.get("modality_config", {"text": {}})
    if "message" in modalities or "text" not in modalities:
        raise ModelLoadError(
            f"{module.folder}: unsupported input modality: {', '.join(modalities)}; only plain text is supported"
        )
    applied = settings.get("processing_kwargs") or {}
    unknown = {*applied.get("text", {}), *applied.get("common", {})} - PADDING_SETTINGS
    if unknown:
        raise ModelLoadError(
            f"{module.folder}: unsupported processing_kwargs: {', '.join(sorted(unknown))}"
        )
    return settings
