from pathlib import Path

import pytest

from serve_app.checkpoints.model_files import (
    Module,
    model_config,
    read_json,
    read_modules,
    transformer_settings,
)
from serve_app.errors import ModelLoadError
from tests.support.checkpoints import write_bert, write_json, write_modules

# In the order in which sentence-transformers tries them.
SETTINGS_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
WIDTHS = ("embedding_dimension", "word_embedding_dimension")


def transformer(directory: Path) -> Module:
    """Return a Transformer whose files are in the directory."""
    return Module("Transformer", "models", directory)


# JSON files.


def test_a_missing_json_file_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "missing.json") is None


def test_json_is_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes('{"prompt": "日本"}'.encode())

    assert read_json(path) == {"prompt": "日本"}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": "\xff"}'])
def test_an_invalid_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)

    with pytest.raises(ModelLoadError, match=r"file\.json cannot be read"):
        read_json(path)


def test_a_json_file_that_is_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.json").mkdir()

    with pytest.raises(ModelLoadError, match=r"file\.json cannot be read"):
        read_json(tmp_path / "file.json")


# config.json of the model.


def test_the_models_config_is_returned(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert"})

    assert model_config(tmp_path) == {"model_type": "bert"}


def test_a_directory_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        model_config(tmp_path)


def test_a_config_that_is_no_object_is_rejected(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", [])

    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        model_config(tmp_path)


# modules.json.


def test_no_modules_json_means_no_modules(tmp_path: Path) -> None:
    assert read_modules(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "kind", "family"),
    [
        ("sentence_transformers.models.Pooling", "Pooling", "models"),
        ("sentence_transformers.base.modules.transformer.Transformer", "Transformer", "base"),
        ("sentence_transformers.sparse_encoder.models.SpladePooling", "SpladePooling", "sparse_encoder"),
        ("custom_st.Transformer", "custom_st.Transformer", "custom code"),
        ("my.sentence_transformers.models.Pooling", "my.sentence_transformers.models.Pooling", "custom code"),
        ("sentence_transformers", "sentence_transformers", "custom code"),
        ("Transformer", "Transformer", "custom code"),
    ],
)  # fmt: skip
def test_a_module_has_a_kind_and_a_family(
    tmp_path: Path, name: str, kind: str, family: str
) -> None:
    write_json(tmp_path / "modules.json", [{"type": name, "path": "0_First"}])

    assert read_modules(tmp_path) == [Module(kind, family, tmp_path / "0_First")]


def test_modules_keep_their_order_and_folders(tmp_path: Path) -> None:
    kinds = ("Transformer", "Pooling", "Normalize")
    write_modules(tmp_path, *(f"sentence_transformers.models.{kind}" for kind in kinds))

    modules = read_modules(tmp_path)

    assert [module.kind for module in modules] == list(kinds)
    folders = [tmp_path, tmp_path / "1_Pooling", tmp_path / "2_Normalize"]
    assert [module.folder for module in modules] == folders


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"type": "x"}', "[1]", '[{"type": "x"}]', '[{"path": ""}]', '[{"type": 1, "path": ""}]'],
)  # fmt: skip
def test_a_broken_modules_json_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)

    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        read_modules(tmp_path)


# config.json of a module.


@pytest.mark.parametrize("config", [None, [], {"pooling_mode": "mean"}])
def test_a_pooling_without_a_width_is_rejected(tmp_path: Path, config: object) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "1_Pooling/config.json", config)
    _, pooling = read_modules(tmp_path)

    with pytest.raises(ModelLoadError, match="1_Pooling"):
        pooling.integer(*WIDTHS)


def test_a_module_without_a_config_is_named(tmp_path: Path) -> None:
    module = Module("Dense", "models", tmp_path / "2_Dense")

    with pytest.raises(
        ModelLoadError, match=r"2_Dense/config\.json is missing .* the Dense module"
    ):
        module.config()


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"embedding_dimension": 24}, 24),
        ({"word_embedding_dimension": 12}, 12),
        ({"word_embedding_dimension": 12, "embedding_dimension": 24}, 24),
        ({"word_embedding_dimension": 12, "embedding_dimension": None}, 12),
        ({"word_embedding_dimension": 12, "embedding_dimension": "24"}, 12),
    ],
)
def test_the_first_named_integer_is_used(
    tmp_path: Path, config: dict[str, object], width: int
) -> None:
    write_json(tmp_path / "config.json", config)

    assert Module("Pooling", "models", tmp_path).integer(*WIDTHS) == width


# Settings of the Transformer.


def test_a_transformer_needs_no_settings(tmp_path: Path) -> None:
    assert transformer_settings(transformer(tmp_path)) == {}


@pytest.mark.parametrize("position", range(len(SETTINGS_FILES)))
def test_the_first_settings_file_of_a_transformer_counts(tmp_path: Path, position: int) -> None:
    for name in SETTINGS_FILES[position:]:
        write_json(tmp_path / name, {"max_seq_length": 8, "name": name})

    settings = transformer_settings(transformer(tmp_path))

    assert settings == {"max_seq_length": 8, "name": SETTINGS_FILES[position]}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modality_config": {"message": {}, "text": {}}}, "modality: message, text;"),
        ({"modality_config": {"image": {}}}, "modality: image;"),
        ({"processing_kwargs": {"text": {"max_length": 5}}}, "processing_kwargs: max_length$"),
        ({"processing_kwargs": {"common": {"z": 1, "padding": True}, "text": {"a": 1}}}, "processing_kwargs: a, z$"),
    ],
)  # fmt: skip
def test_unsupported_transformer_settings_are_rejected(
    tmp_path: Path, settings: dict[str, object], named: str
) -> None:
    write_json(tmp_path / "sentence_bert_config.json", settings)

    with pytest.raises(ModelLoadError, match=f"unsupported .*{named}"):
        transformer_settings(transformer(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"modality_config": {"text": {}}},
        {"processing_kwargs": None},
        {"processing_kwargs": {"text": {"padding": True}, "common": {"padding_side": "left"}}},
    ],
)
def test_settings_for_plain_text_and_padding_are_supported(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    write_json(tmp_path / "sentence_bert_config.json", settings)

    assert transformer_settings(transformer(tmp_path)) == settings
