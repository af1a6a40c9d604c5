from pathlib import Path

import pytest

from serve_app.checkpoints.embedding_models import check_supported, reason_not_to_embed
from serve_app.checkpoints.model_files import Module, read_json, read_modules
from serve_app.errors import ModelLoadError
from tests.support.checkpoints import write_bert, write_json, write_modules

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"


def reason_in(directory: Path) -> str | None:
    """Return the reason why the model in a directory does not embed."""
    settings = read_json(directory / "config_sentence_transformers.json") or {}
    return reason_not_to_embed(directory, settings, read_modules(directory))


def modules(*kinds: str) -> list[Module]:
    """Return modules of sentence-transformers."""
    return [Module(kind, "models", Path(str(number))) for number, kind in enumerate(kinds)]


# Which models embed.


def test_a_transformer_with_a_pooling_embeds(tmp_path: Path) -> None:
    write_bert(tmp_path)

    assert reason_in(tmp_path) is None


@pytest.mark.parametrize("settings", [{}, {"model_type": None}, {"model_type": "SentenceTransformer"}])  # fmt: skip
def test_a_declared_sentence_transformer_embeds(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    write_bert(tmp_path)

    assert reason_not_to_embed(tmp_path, settings, read_modules(tmp_path)) is None


def test_the_pooling_may_come_after_other_modules(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_modules(tmp_path, *(f"{OLD}.{kind}" for kind in ("Transformer", "Dense", "Pooling")))

    assert reason_in(tmp_path) is None


def test_a_static_embedding_embeds_without_a_pooling(tmp_path: Path) -> None:
    write_modules(tmp_path, f"{OLD}.StaticEmbedding")

    assert reason_in(tmp_path) is None


def test_an_unsupported_module_is_no_reason_not_to_embed(tmp_path: Path) -> None:
    """The start fails instead: the server must not list the model as one that does not embed."""
    write_modules(tmp_path, f"{OLD}.CLIPModel")

    assert reason_in(tmp_path) is None


@pytest.mark.parametrize(
    "architecture",
    ["BertForSequenceClassification", "Qwen3ForCausalLM", "BertForMaskedLM", "BertModel"],
)
def test_a_model_without_modules_json_does_not_embed(tmp_path: Path, architecture: str) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert", "architectures": [architecture]})

    reason = reason_in(tmp_path)

    assert reason == f"{architecture} has no modules.json, which would define the pooling"
    assert str(tmp_path) not in reason


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": []}])
def test_a_model_without_an_architecture_does_not_embed(
    tmp_path: Path, config: dict[str, object]
) -> None:
    write_json(tmp_path / "config.json", config)

    reason = reason_in(tmp_path)

    assert reason == "the model has no modules.json, which would define the pooling"


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder", "ColBERT"])
def test_another_kind_of_model_does_not_embed(tmp_path: Path, kind: str) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "config_sentence_transformers.json", {"model_type": kind})

    reason = reason_in(tmp_path)

    assert reason is not None
    assert f"declares a {kind}" in reason


def test_a_model_with_a_sparse_pooling_does_not_embed(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_modules(
        tmp_path,
        f"{OLD}.Transformer",
        "sentence_transformers.sparse_encoder.models.SpladePooling",
    )

    reason = reason_in(tmp_path)

    assert reason is not None
    assert "SpladePooling" in reason


@pytest.mark.parametrize("family", ["cross_encoder", "multi_vector_encoder", "sparse_encoder"])
@pytest.mark.parametrize("position", [0, 2])
def test_a_module_of_another_family_means_no_embedding(
    tmp_path: Path, family: str, position: int
) -> None:
    write_bert(tmp_path)
    kinds = [f"{OLD}.Transformer", f"{OLD}.Pooling"]
    kinds.insert(position, f"sentence_transformers.{family}.modules.Head")
    write_modules(tmp_path, *kinds)

    reason = reason_in(tmp_path)

    assert reason == f"modules.json lists Head from sentence-transformers' {family}"


def test_a_transformer_without_pooling_does_not_embed(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_modules(tmp_path, f"{OLD}.Transformer", f"{OLD}.Dense")

    reason = reason_in(tmp_path)

    assert reason is not None
    assert "no Pooling" in reason


def test_a_transformer_for_another_task_does_not_embed(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", {"transformer_task": "fill-mask"})

    reason = reason_in(tmp_path)

    assert reason is not None
    assert "fill-mask" in reason


def test_a_transformer_for_feature_extraction_embeds(tmp_path: Path) -> None:
    write_bert(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", {"transformer_task": "feature-extraction"})

    assert reason_in(tmp_path) is None


# Which embedding models are supported.


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
def test_an_unsupported_module_is_rejected(
    tmp_path: Path, kinds: tuple[str, ...], name: str
) -> None:
    write_bert(tmp_path)
    write_modules(tmp_path, *kinds)
    assert reason_in(tmp_path) is None

    with pytest.raises(ModelLoadError, match=f"unsupported module: {name}"):
        check_supported(read_modules(tmp_path))


@pytest.mark.parametrize("first", ["Transformer", "StaticEmbedding"])
@pytest.mark.parametrize("later", ["Pooling", "Dense", "LayerNorm", "Dropout", "Normalize"])
def test_all_later_modules_may_follow_a_first_one(first: str, later: str) -> None:
    check_supported(modules(first))
    check_supported(modules(first, later, later))


@pytest.mark.parametrize(
    ("kinds", "index"),
    [
        (("Pooling", "Transformer"), 0),
        (("Transformer", "Transformer", "Pooling"), 1),
        (("Transformer", "Pooling", "StaticEmbedding"), 2),
    ],
)
def test_a_module_in_the_wrong_place_is_rejected(kinds: tuple[str, ...], index: int) -> None:
    with pytest.raises(
        ModelLoadError, match=rf"{index}: .*: {kinds[index]} \(models\), at index {index} "
    ):
        check_supported(modules(*kinds))
