import json
import struct
from pathlib import Path

import pytest

from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.errors import ModelLoadError
from tests.support.checkpoints import write_bert, write_json, write_modules

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"


def test_a_transformer_with_a_pooling_embeds(tmp_path: Path) -> None:
    write_bert(tmp_path, max_seq_length=32, prompts={"query": "query: "}, include_prompt=False)

    checkpoint = read_checkpoint(str(tmp_path))

    assert checkpoint.embeds
    assert checkpoint.reason == "modules.json lists an embedding model: Transformer, Pooling"
    assert checkpoint.dimensions == 24
    assert checkpoint.max_input_tokens == 32
    assert checkpoint.prompts == {"query": "query: ", "document": ""}
    assert not checkpoint.include_prompt
    assert checkpoint.adds_special_tokens
    assert checkpoint.directory == tmp_path.resolve()


def test_module_names_of_the_new_format_are_supported(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_modules(
        tmp_path,
        "sentence_transformers.base.modules.transformer.Transformer",
        f"{NEW}.pooling.Pooling",
        "sentence_transformers.base.modules.normalize.Normalize",
    )
    write_json(
        tmp_path / "1_Pooling/config.json",
        {"embedding_dimension": 24, "pooling_mode": ["cls", "max"]},
    )

    checkpoint = read_checkpoint(str(tmp_path))

    assert checkpoint.embeds
    assert checkpoint.dimensions == 48


def test_old_pooling_flags_are_concatenated(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(
        tmp_path / "1_Pooling/config.json",
        {
            "word_embedding_dimension": 24,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": True,
        },
    )

    assert read_checkpoint(str(tmp_path)).dimensions == 48


def test_the_last_module_with_a_width_sets_the_dimensions(tmp_path: Path) -> None:
    write_bert(tmp_path)
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    write_modules(tmp_path, *(f"{OLD}.{kind}" for kind in kinds))
    write_json(tmp_path / "2_Dense/config.json", {"in_features": 24, "out_features": 7})

    assert read_checkpoint(str(tmp_path)).dimensions == 7


def test_truncate_dim_lowers_the_dimensions(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "config_sentence_transformers.json", {"truncate_dim": 5})

    assert read_checkpoint(str(tmp_path)).dimensions == 5


@pytest.mark.parametrize("key", ["embedding.weight", "embeddings"])
def test_a_static_embedding_has_no_limit_and_no_special_tokens(tmp_path: Path, key: str) -> None:
    write_modules(tmp_path, f"{OLD}.StaticEmbedding")
    header = json.dumps(
        {key: {"dtype": "F32", "shape": [100, 12], "data_offsets": [0, 4800]}}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    checkpoint = read_checkpoint(str(tmp_path))

    assert checkpoint.embeds
    assert checkpoint.dimensions == 12
    assert checkpoint.max_input_tokens is None
    assert not checkpoint.adds_special_tokens


def test_undefined_prompts_are_empty(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(
        tmp_path / "config_sentence_transformers.json",
        {"prompts": {"document": None, "search": "search: "}},
    )

    checkpoint = read_checkpoint(str(tmp_path))

    assert checkpoint.prompts == {"query": "", "document": "", "search": "search: "}


@pytest.mark.parametrize(
    "architecture",
    ["BertForSequenceClassification", "Qwen3ForCausalLM", "BertForMaskedLM", "BertModel"],
)
def test_a_model_without_modules_json_does_not_embed(tmp_path: Path, architecture: str) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert", "architectures": [architecture]})

    checkpoint = read_checkpoint(str(tmp_path))

    assert not checkpoint.embeds
    assert architecture in checkpoint.reason
    assert str(tmp_path) not in checkpoint.reason
    assert checkpoint.dimensions is None


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder", "ColBERT"])
def test_another_kind_of_model_does_not_embed(tmp_path: Path, kind: str) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "config_sentence_transformers.json", {"model_type": kind})

    checkpoint = read_checkpoint(str(tmp_path))

    assert not checkpoint.embeds
    assert kind in checkpoint.reason


def test_a_model_with_a_sparse_pooling_does_not_embed(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_modules(
        tmp_path,
        f"{OLD}.Transformer",
        "sentence_transformers.sparse_encoder.models.SpladePooling",
    )

    checkpoint = read_checkpoint(str(tmp_path))

    assert not checkpoint.embeds
    assert "SpladePooling" in checkpoint.reason


def test_a_transformer_without_pooling_does_not_embed(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_modules(tmp_path, f"{OLD}.Transformer", f"{OLD}.Dense")

    checkpoint = read_checkpoint(str(tmp_path))

    assert not checkpoint.embeds
    assert "no Pooling" in checkpoint.reason


def test_a_transformer_for_another_task_does_not_embed(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", {"transformer_task": "fill-mask"})

    assert not read_checkpoint(str(tmp_path)).embeds


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        ((f"{OLD}.CLIPModel",), "CLIPModel"),
        ((f"{OLD}.WordEmbeddings", f"{OLD}.Pooling"), "WordEmbeddings"),
        ((f"{NEW}.router.Router", f"{OLD}.Pooling"), "Router"),
        (("custom_st.Transformer", f"{OLD}.Pooling"), "custom_st.Transformer"),
        ((f"{OLD}.Transformer", f"{OLD}.Pooling", f"{OLD}.CNN"), "CNN"),
    ],
)
def test_an_unsupported_module_fails_the_start(
    tmp_path: Path, kinds: tuple[str, ...], name: str
) -> None:
    write_bert(tmp_path)
    write_modules(tmp_path, *kinds)

    with pytest.raises(ModelLoadError, match=f"unsupported module: {name}"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"modality_config": {"message": {}, "text": {}}},
        {"modality_config": {"image": {}}},
        {"processing_kwargs": {"text": {"max_length": 5}}},
    ],
)
def test_unsupported_transformer_settings_fail_the_start(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", settings)

    with pytest.raises(ModelLoadError, match="unsupported"):
        read_checkpoint(str(tmp_path))


def test_a_directory_without_a_model_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"type": "x"}', "[1]"])
def test_a_broken_modules_json_fails_the_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)

    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize("config", [None, [], {"pooling_mode": "mean"}])
def test_a_pooling_without_a_width_fails_the_start(tmp_path: Path, config: object) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "1_Pooling/config.json", config)

    with pytest.raises(ModelLoadError, match="1_Pooling"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("declared", "tokenizer", "config", "expected"),
    [
        (16, {"model_max_length": 20}, {"max_position_embeddings": 30}, 16),
        (None, {"model_max_length": 20}, {"max_position_embeddings": 30}, 20),
        (None, {"model_max_length": 10**30}, {"max_position_embeddings": 30}, 30),
        (None, {}, {"max_position_embeddings": 30}, 30),
        (None, {"model_max_length": 20}, {"max_position_embeddings": -1}, 20),
        (None, {"model_max_length": 20}, {}, 20),
        (None, {}, {}, None),
        (None, {}, {"model_type": "gpt2", "n_positions": 30}, 30),
        (None, {}, {"model_type": "t5", "n_positions": 30}, None),
    ],
)
def test_the_input_limit_matches_sentence_transformers(
    tmp_path: Path,
    declared: int | None,
    tokenizer: dict[str, object],
    config: dict[str, object],
    expected: int | None,
) -> None:
    write_bert(tmp_path, max_seq_length=declared)
    write_json(tmp_path / "tokenizer_config.json", tokenizer)
    write_json(tmp_path / "config.json", config)

    assert read_checkpoint(str(tmp_path)).max_input_tokens == expected
