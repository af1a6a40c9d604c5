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


def test_a_model_that_does_not_embed_has_only_a_reason(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"architectures": ["BertForMaskedLM"]})

    checkpoint = read_checkpoint(str(tmp_path))

    assert not checkpoint.embeds
    assert checkpoint.reason.startswith("BertForMaskedLM has no modules.json")
    assert (checkpoint.dimensions, checkpoint.max_input_tokens) == (None, None)


def test_a_declared_model_type_decides_whether_a_model_embeds(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})

    assert not read_checkpoint(str(tmp_path)).embeds


def test_an_embedding_model_with_other_modules_is_rejected(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_modules(tmp_path, *(f"{OLD}.{kind}" for kind in ("Transformer", "Pooling", "CNN")))

    with pytest.raises(ModelLoadError, match="unsupported module: CNN"):
        read_checkpoint(str(tmp_path))


def test_unsupported_transformer_settings_fail_the_start(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", {"modality_config": {"image": {}}})

    with pytest.raises(ModelLoadError, match="unsupported"):
        read_checkpoint(str(tmp_path))


def test_a_pooling_without_a_width_fails_the_start(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode": "mean"})

    with pytest.raises(ModelLoadError, match="1_Pooling"):
        read_checkpoint(str(tmp_path))
