from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.errors import ModelLoadError
from serve_app.tokenization.loader import TokenizerFile, load_tokenizer_file
from tests.support.checkpoints import (
    LONG_TEXT,
    NASTY_TEXTS,
    byte_bpe,
    letters,
    unigram,
    wordpiece,
    write_bert,
    write_json,
)

MAKERS = {
    "wordpiece": wordpiece,
    "byte_bpe": byte_bpe,
    "roberta": partial(byte_bpe, roberta=True),
    "unigram": unigram,
}
every_tokenizer = pytest.mark.parametrize("make_raw", MAKERS.values(), ids=MAKERS)
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}


def load(directory: Path, raw: Tokenizer | None = None, **changes: object) -> TokenizerFile:
    """Load the tokenizer of a model; `changes` override fields of its checkpoint."""
    write_bert(directory, tokenizer=raw)
    return load_tokenizer_file(replace(read_checkpoint(str(directory)), **changes))  # type: ignore[arg-type]


def encode(file: TokenizerFile, *texts: str) -> list[list[int]]:
    """Return the ids of texts, with special tokens."""
    return [encoding.ids for encoding in file.tokenizer.encode_batch(list(texts))]


# The file.


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    raw = wordpiece()
    raw.enable_truncation(5)
    raw.enable_padding(length=5)

    file = load(tmp_path, raw)

    assert [len(ids) for ids in encode(file, "fox", "the lazy dog sleeps then")] == [3, 7]


def test_the_error_for_no_tokenizer_json_says_how_to_make_it(tmp_path: Path) -> None:
    write_bert(tmp_path)
    (tmp_path / "tokenizer.json").unlink()

    with pytest.raises(ModelLoadError, match="save_pretrained"):
        load_tokenizer_file(read_checkpoint(str(tmp_path)))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", ""])
def test_a_tokenizer_file_that_is_no_json_is_rejected(
    tmp_path: Path, name: str, content: str
) -> None:
    write_bert(tmp_path)
    checkpoint = read_checkpoint(str(tmp_path))
    (tmp_path / name).write_text(content)

    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_tokenizer_file(checkpoint)


def test_a_broken_tokenizer_json_is_rejected(tmp_path: Path) -> None:
    write_bert(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_tokenizer_file(read_checkpoint(str(tmp_path)))


def test_a_tokenizer_without_common_letters_is_rejected(tmp_path: Path) -> None:
    raw = Tokenizer(models.BPE())
    raw.add_tokens(["supercalifragilistic"])

    with pytest.raises(ModelLoadError, match="no token for the most common letters"):
        load(tmp_path, raw)


def test_a_tokenizer_in_a_folder_of_its_own_is_used(tmp_path: Path) -> None:
    outer, inner = wordpiece(), byte_bpe()
    folder = tmp_path / "0_Transformer"
    write_json(folder / "tokenizer_config.json", {"eos_token": "a"})
    inner.save(str(folder / "tokenizer.json"))

    files = [load(tmp_path, outer, tokenizer_directory=where) for where in (folder, None)]

    assert [encode(file, LONG_TEXT)[0] for file in files] == [
        raw.encode(LONG_TEXT).ids for raw in (inner, outer)
    ]
    assert [raw.token_to_id("a") in file.special_ids
            for raw, file in zip((inner, outer), files, strict=True)] == [True, False]  # fmt: skip


# Special tokens.


@every_tokenizer
def test_prefix_and_suffix_enclose_every_text(
    tmp_path: Path, make_raw: Callable[[], Tokenizer]
) -> None:
    raw = make_raw()
    file = load(tmp_path, raw)

    texts = (*NASTY_TEXTS, LONG_TEXT)

    assert [raw.encode(text).ids for text in texts] == [
        file.prefix + raw.encode(text, add_special_tokens=False).ids + file.suffix for text in texts
    ]
    assert file.suffix


def test_prefix_and_suffix_may_have_several_tokens(tmp_path: Path) -> None:
    raw = wordpiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] [MASK] $A [SEP] [SEP] [CLS]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)],
    )

    file = load(tmp_path, raw)

    assert (file.prefix, file.suffix) == ([2, 4], [3, 3, 2])


def test_without_special_tokens_prefix_and_suffix_are_empty(tmp_path: Path) -> None:
    file = load(tmp_path, wordpiece(), adds_special_tokens=False)

    assert (file.prefix, file.suffix) == ([], [])


def test_a_static_embedding_may_drop_the_common_letters(tmp_path: Path) -> None:
    raw = letters()

    file = load(tmp_path, raw, adds_special_tokens=False)

    assert encode(file, "the fox", "日本") == [raw.encode("the fox").ids, []]


def test_special_ids_are_those_of_the_file_and_the_config(tmp_path: Path) -> None:
    raw = wordpiece()
    raw.add_tokens(["plain"])
    raw.add_special_tokens(["<extra>"])
    write_json(
        tmp_path / "tokenizer_config.json",
        {
            "bos_token": "the",
            "eos_token": {"content": "fox", "lstrip": False},
            "unk_token": None,
            "pad_token": "not in the vocabulary",
            "model_input_names": "dog",
        },
    )

    file = load(tmp_path, raw)

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<extra>", "the", "fox"]
    assert None not in map(raw.token_to_id, [*tokens, "dog", "plain"])
    assert file.special_ids == {raw.token_to_id(token) for token in tokens}


def test_the_vocabulary_size_includes_added_tokens(tmp_path: Path) -> None:
    raw = wordpiece()
    before = raw.get_vocab_size()
    raw.add_tokens([AddedToken("one"), AddedToken("more")])

    assert load(tmp_path, raw).vocabulary_size == before + 2


def test_the_vocabulary_size_is_the_largest_id_plus_one(tmp_path: Path) -> None:
    raw = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 7, "b": 3}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()

    assert load(tmp_path, raw).vocabulary_size == 8


# Normalizers.


@pytest.mark.parametrize(
    ("settings", "lowercase"),
    [
        ({"tokenizer_class": "BertTokenizer", "do_lower_case": False}, False),
        ({"tokenizer_class": "BertTokenizer"}, True),
        ({}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, False),
        ({"tokenizer_class": "TokenizersBackend", "do_lower_case": True}, False),
    ],
)
def test_tokenizer_config_overrides_berts_normalizer(
    tmp_path: Path, settings: dict[str, object], *, lowercase: bool
) -> None:
    """The ids must be those that transformers gives with the same files."""
    write_json(tmp_path / "tokenizer_config.json", settings)
    raw = wordpiece(lowercase=False)
    file = load(tmp_path, raw)

    assert encode(file, "The FOX") == [raw.encode("the fox" if lowercase else "The FOX").ids]


@pytest.mark.parametrize(
    ("settings", "normalized"),
    [
        ({}, " 日  本  cafe the"),
        ({"tokenize_chinese_chars": False}, "日本 cafe the"),
        ({"strip_accents": False}, " 日  本  café the"),
        ({"do_lower_case": False}, " 日  本  café The"),
        ({"do_lower_case": False, "strip_accents": True}, " 日  本  cafe The"),
    ],
)
def test_each_setting_of_berts_normalizer_is_read(
    tmp_path: Path, settings: dict[str, object], normalized: str
) -> None:
    write_json(tmp_path / "tokenizer_config.json", settings)

    file = load(tmp_path, wordpiece())

    assert file.tokenizer.normalizer is not None
    assert file.tokenizer.normalizer.normalize_str("日本\u0000 café The") == normalized


def test_berts_normalizer_is_found_among_other_steps(tmp_path: Path) -> None:
    raw = wordpiece(lowercase=False)
    raw.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=False)]
    )

    file = load(tmp_path, raw)

    assert encode(file, "The FOX") == [raw.encode("the fox").ids]


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_a_normalizer_that_is_not_berts_is_kept(
    tmp_path: Path, normalizer: normalizers.Normalizer | None
) -> None:
    raw = wordpiece()
    raw.normalizer = normalizer
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})

    file = load(tmp_path, raw)

    assert type(file.tokenizer.normalizer) is type(normalizer)


def test_a_static_embedding_keeps_berts_normalizer(tmp_path: Path) -> None:
    """It reads tokenizer.json without transformers, which would replace the normalizer."""
    raw = wordpiece(lowercase=False)

    file = load(tmp_path, raw, adds_special_tokens=False)

    assert encode(file, "The FOX") == [raw.encode("The FOX").ids]


@every_tokenizer
def test_do_lower_case_applies_to_any_tokenizer(
    tmp_path: Path, make_raw: Callable[[], Tokenizer]
) -> None:
    raw = make_raw()
    file = load(tmp_path, raw, lowercase=True)

    assert encode(file, "The FOX Äß") == [raw.encode("the fox äß").ids]


def test_do_lower_case_comes_before_all_other_steps(tmp_path: Path) -> None:
    raw = wordpiece()
    raw.normalizer = normalizers.Sequence([normalizers.Replace("X", "!"), normalizers.NFC()])

    file = load(tmp_path, raw, lowercase=True)

    assert file.tokenizer.normalizer is not None
    assert file.tokenizer.normalizer.normalize_str("FOX") == "fox"


@pytest.mark.parametrize("is_alone", [True, False])
def test_text_is_lowered_only_once(
    tmp_path: Path,
    is_alone: bool,  # noqa: FBT001
) -> None:
    raw = wordpiece()
    lowercase = normalizers.Lowercase()
    steps = [normalizers.Replace("X", "!"), lowercase]
    raw.normalizer = lowercase if is_alone else normalizers.Sequence(steps)

    file = load(tmp_path, raw, lowercase=True)

    assert file.tokenizer.normalizer is not None
    assert file.tokenizer.normalizer.normalize_str("FOX") == ("fox" if is_alone else "fo!")
