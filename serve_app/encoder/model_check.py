"""What is asked of a model once it is loaded: that it is what its files said, for those who only read the files.

The ingress describes a model and tokenizes for it from the files alone. Where sentence-transformers would do otherwise,
vectors would be silently wrong; so the start fails instead. Takes the loaded model as it comes, and imports neither
torch nor sentence-transformers.
"""

from typing import Any

import numpy as np

from serve_app.checkpoints.metadata import NO_LIMIT, Checkpoint
from serve_app.errors import ModelLoadError
from serve_app.tokenization.tokenizer import Tokenizer

# Case, accents, scripts without spaces, ligatures, emoji, spaces: what tokenizers disagree about.
PROBES = (
    "Hello, World! This is a plain sentence.",
    "ÀÉÎ Ünïcödé naïve e\u0301 İstanbul STRASSE",
    "日本語のテスト 한국어 中文、标点。 ไทย हिन्दी",
    "  two  spaces\tand\nlines \u200b\u00a0 ",
    "don't — “quotes” … 12345.67 ﬁ ① ½ C++ <s> [MASK] https://example.org/a?b=c",
    "🙂 👩\u200d👩\u200d👧 x",
)
KNOWN_FEATURES = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "offsets", "modality", "prompt_length"}
)


def check_model(model: Any, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Compare a loaded SentenceTransformer with what its files were read to say.

    Args:
        model: the SentenceTransformer.
        checkpoint: what its files say.
        tokenizer: made from `checkpoint` alone.

    Raises:
        ModelLoadError: they differ, or the model needs more than token ids.
    """
    limit = model.max_seq_length
    limit = None if limit is None or limit >= NO_LIMIT else limit
    facts = (
        ("dimensions", model.get_embedding_dimension(), checkpoint.dimensions),
        (
            "max_seq_length (state it in sentence_bert_config.json)",
            limit,
            checkpoint.max_input_tokens,
        ),
        ("prompts", dict(model.prompts), dict(checkpoint.prompts)),
    )
    for name, loaded, read in facts:
        if loaded != read:
            raise ModelLoadError(
                f"{checkpoint.directory}: {name} is {loaded} once loaded, but its files seemed to say {read}"
            )
    for prompt_name in (None, *checkpoint.prompts):
        for probe in PROBES:
            _check_features(model, checkpoint, tokenizer, probe, prompt_name=prompt_name)


def _check_features(
    model: Any, checkpoint: Checkpoint, tokenizer: Tokenizer, probe: str, *, prompt_name: str | None
) -> None:
    prompt = checkpoint.prompts.get(prompt_name or "")
    features = model.preprocess([probe], prompt=prompt)
    if unknown := set(features) - KNOWN_FEATURES:
        raise ModelLoadError(
            f"{checkpoint.directory}: not supported: it reads {', '.join(sorted(unknown))}"
        )
    if "token_type_ids" in features and features["token_type_ids"].any():
        raise ModelLoadError(f"{checkpoint.directory}: not supported: token types other than 0")
    ids = features["input_ids"]
    if "attention_mask" in features:
        ids = ids[features["attention_mask"].bool()]
    ours = tokenizer.encode_texts(
        [probe], prompt_name=prompt_name, truncate=True, truncate_direction="right"
    ).inputs
    same_prompt = (
        checkpoint.include_prompt or features.get("prompt_length", 0) == ours.prompt_length
    )
    if not (same_prompt and np.array_equal(ids.numpy().ravel(), ours.ids)):
        raise ModelLoadError(
            f"{checkpoint.directory}: its tokenizer.json gives other tokens than sentence-transformers does; write it "
            "anew with `SentenceTransformer(directory).save(other_directory)`, and serve that"
        )
