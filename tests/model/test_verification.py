from dataclasses import replace
from typing import Any

import pytest
import torch

from serve_app.encoder.verification import check_model
from serve_app.errors import ModelLoadError
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.models import Loaded, TinyModels


class ModelWithFeatures:
    """A loaded model whose `preprocess` returns some other features."""

    def __init__(self, model: Any, features: dict[str, torch.Tensor]) -> None:
        self._model = model
        self._features = features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def preprocess(self, texts: list[str], *, prompt: str | None) -> dict[str, Any]:
        """Return the model's features, some of them replaced."""
        return {**self._model.preprocess(texts, prompt=prompt), **self._features}


def test_every_tiny_model_matches_its_files(model: Loaded) -> None:
    check_model(model.reference, model.checkpoint, model.tokenizer)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"dimensions": 31}, "dimensions"),
        ({"max_input_tokens": 23}, "max_seq_length"),
        ({"max_input_tokens": None}, "max_seq_length"),
        ({"prompts": {}}, "prompts"),
    ],
)
def test_a_metadata_mismatch_fails_the_start(
    tiny: TinyModels, change: dict[str, Any], name: str
) -> None:
    model = tiny("mean")

    with pytest.raises(ModelLoadError, match=name):
        check_model(model.reference, replace(model.checkpoint, **change), model.tokenizer)


def test_different_token_ids_fail_the_start(tiny: TinyModels) -> None:
    model = tiny("mean")

    with pytest.raises(ModelLoadError, match="different token ids"):
        check_model(model.reference, model.checkpoint, tiny("cased").tokenizer)


def test_a_different_prompt_length_fails_the_start(
    tiny: TinyModels,
) -> None:
    """The ids are equal; the pooling would skip the wrong number of tokens."""
    model = tiny("no-prompt-mean")
    changed = ModelWithFeatures(model.reference, {"prompt_length": torch.tensor(9)})

    with pytest.raises(ModelLoadError, match="different token ids"):
        check_model(changed, model.checkpoint, model.tokenizer)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({"token_type_ids": torch.ones(1, 4, dtype=torch.int64)}, "token types"),
        ({"global_attention_mask": torch.zeros(1)}, "global_attention_mask"),
    ],
)
def test_a_model_that_reads_more_than_ids_fails_the_start(
    tiny: TinyModels, features: dict[str, torch.Tensor], name: str
) -> None:
    model = tiny("mean")

    with pytest.raises(ModelLoadError, match=name):
        check_model(ModelWithFeatures(model.reference, features), model.checkpoint, model.tokenizer)


def test_operator_prompts_are_not_a_mismatch(tiny: TinyModels) -> None:
    model = tiny("mean")

    check_model(
        model.reference, model.checkpoint, Tokenizer(model.checkpoint, prompts={"new": "new: "})
    )
