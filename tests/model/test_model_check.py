from dataclasses import replace
from typing import Any

import pytest
import torch

from serve_app.encoder.model_check import check_model
from serve_app.errors import ModelLoadError
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.models import Loaded, TinyModels


class Changed:
    """A loaded model, some of whose features are changed."""

    def __init__(self, model: Any, features: dict[str, torch.Tensor]) -> None:
        self._model = model
        self._features = features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def preprocess(self, texts: list[str], *, prompt: str | None) -> dict[str, Any]:
        """Return the model's features and the changed ones."""
        return {**self._model.preprocess(texts, prompt=prompt), **self._features}


def test_a_model_is_what_its_files_say(model: Loaded) -> None:
    """Every tiny model passes, whatever its tokenizer, pooling and prompts."""
    check_model(model.reference, model.checkpoint, model.tokenizer)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dimensions": 31}, "dimensions"),
        ({"max_input_tokens": 23}, "max_seq_length"),
        ({"max_input_tokens": None}, "max_seq_length"),
        ({"prompts": {}}, "prompts"),
    ],
)
def test_a_fact_that_the_files_did_not_tell_fails_the_start(
    tiny: TinyModels, change: dict[str, Any], named: str
) -> None:
    """The message names it."""
    model = tiny("mean")

    with pytest.raises(ModelLoadError, match=named):
        check_model(model.reference, replace(model.checkpoint, **change), model.tokenizer)


def test_other_ids_than_sentence_transformers_fail_the_start(tiny: TinyModels) -> None:
    """Another tokenizer than the model's is noticed."""
    model = tiny("mean")

    with pytest.raises(ModelLoadError, match="other tokens"):
        check_model(model.reference, model.checkpoint, tiny("cased").tokenizer)


def test_another_length_of_a_prompt_fails_the_start_where_it_matters(
    tiny: TinyModels,
) -> None:
    """Ids alone would not tell: the pooling skips as many tokens as the prompt is said to have."""
    model = tiny("no-prompt-mean")
    changed = Changed(model.reference, {"prompt_length": torch.tensor(9)})

    with pytest.raises(ModelLoadError, match="other tokens"):
        check_model(changed, model.checkpoint, model.tokenizer)


@pytest.mark.parametrize(
    ("features", "named"),
    [
        ({"token_type_ids": torch.ones(1, 4, dtype=torch.int64)}, "token types"),
        ({"global_attention_mask": torch.zeros(1)}, "global_attention_mask"),
    ],
)
def test_a_model_that_reads_more_than_ids_fails_the_start(
    tiny: TinyModels, features: dict[str, torch.Tensor], named: str
) -> None:
    """The message says what it would read."""
    model = tiny("mean")

    with pytest.raises(ModelLoadError, match=named):
        check_model(Changed(model.reference, features), model.checkpoint, model.tokenizer)


def test_prompts_of_the_configuration_are_no_difference(tiny: TinyModels) -> None:
    """What is compared is the model, not what the operator adds."""
    model = tiny("mean")

    check_model(
        model.reference, model.checkpoint, Tokenizer(model.checkpoint, prompts={"new": "new: "})
    )
