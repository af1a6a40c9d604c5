"""The OpenVINO engine: selection, cached graphs and failures."""

import logging
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.encoder import load_encoder
from serve_app.errors import ModelLoadError
from serve_app.messages import Failure, TokenizedInputs, Vectors
from tests.support.checkpoints import write_json
from tests.support.tiny_models import MAX_SEQ_LENGTH, bert, build, static

pytest.importorskip("openvino", reason="openvino is not installed")

from serve_app.encoder import openvino, openvino_export
from serve_app.encoder.engine import PASSES_PER_STREAM, Features
from serve_app.encoder.openvino import OpenVinoEngine, load_graph
from serve_app.encoder.torch import TorchEngine

IDS = TokenizedInputs(np.array([2, 10, 11, 12, 3, 2, 20, 3], np.int32), np.array([5, 3], np.int32))
POISON = 7


def vectors(directory: Path, *, engine: str = "auto", dtype: str = "float32") -> Vectors:
    """Load a model and return the vectors of `IDS`."""
    encoder = load_encoder(str(directory), device="cpu", engine=engine, dtype=dtype, warm_up=False)
    encoded = encoder.encode([IDS])
    assert encoded.failures == ()
    return encoded.vectors


def change_embeddings(directory: Path, rows: Any, factor: float) -> None:
    """Multiply rows of the token embedding table and overwrite the model."""
    model = SentenceTransformer(str(directory), device="cpu")
    with torch.no_grad():
        model[0].model.get_input_embeddings().weight[rows] *= factor
    model.save(str(directory))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the directory of a model that the test may change."""
    return build(tmp_path, bert, "mean")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every conversion fail."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("an operator without a translation")

    monkeypatch.setattr(openvino, "convert", fail)


def test_a_transformer_runs_in_openvino_by_default(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ray.serve.embeddings"):
        encoder = load_encoder(str(saved), device="cpu")

    assert encoder.engine_name == "openvino"
    assert f"{saved}: using engine openvino in f32" in [r.getMessage() for r in caplog.records]


def test_engine_torch_can_be_selected(saved: Path) -> None:
    assert load_encoder(str(saved), device="cpu", engine="torch").engine_name == "torch"


def test_a_static_model_runs_in_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ray.serve.embeddings"):
        encoder = load_encoder(str(static(tmp_path)), device="cpu")

    assert encoder.engine_name == "torch"
    assert "using engine torch: a StaticEmbedding" in caplog.text


def test_a_model_that_cannot_be_converted_runs_in_torch(
    saved: Path,
    own_cache: Path,  # noqa: ARG001
    no_conversion: None,  # noqa: ARG001
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="ray.serve.embeddings"):
        encoder = load_encoder(str(saved), device="cpu")

    assert encoder.engine_name == "torch"
    assert "an operator without a translation" in caplog.text


def test_a_graph_with_wrong_vectors_is_not_used(
    saved: Path,
    own_cache: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def convert_wrongly(modules: list[Any], **options: Any) -> Any:
        modules = deepcopy(modules)
        with torch.no_grad():
            modules[0].model.get_input_embeddings().weight.mul_(1.5)
        return openvino_export.convert(modules, **options)

    monkeypatch.setattr(openvino, "convert", convert_wrongly)
    monkeypatch.setattr(openvino, "keep", lambda *_: False)
    with pytest.raises(ModelLoadError, match="the graph's vectors differ from torch's"):
        vectors(saved, engine="openvino")


@pytest.mark.parametrize(
    ("model", "reason"),
    [(static, "StaticEmbedding"), (lambda d: build(d, bert, "mean"), "not installed")],
    ids=["static", "not installed"],
)
def test_engine_openvino_fails_the_start_if_it_cannot_run(
    tmp_path: Path, model: Callable[[Path], Path], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "not installed":
        monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(ModelLoadError, match=f"engine openvino cannot run this model: .*{reason}"):
        load_encoder(str(model(tmp_path)), device="cpu", engine="openvino")


def test_torch_runs_if_openvino_is_not_installed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    assert load_encoder(str(saved), device="cpu").engine_name == "torch"


def test_a_limit_beyond_the_positions_rules_out_openvino(saved: Path) -> None:
    """Torch raises an error for such inputs; a graph would read zeros."""
    write_json(saved / "sentence_bert_config.json", {"max_seq_length": 64})

    with pytest.raises(ModelLoadError, match="longer than the model's 40 positions"):
        load_encoder(str(saved), device="cpu", engine="openvino", warm_up=False)


def test_a_graph_is_cached_for_the_next_start(
    saved: Path, own_cache: Path, request: pytest.FixtureRequest
) -> None:
    first = vectors(saved)
    request.getfixturevalue("no_conversion")

    second = vectors(saved, engine="openvino")

    np.testing.assert_array_equal(first, second)
    assert len(list(own_cache.rglob("graph.xml"))) == 1


def test_a_changed_model_gets_its_own_graph(saved: Path, own_cache: Path) -> None:
    before = vectors(saved)
    change_embeddings(saved, slice(None), 0.5)

    after = vectors(saved, engine="openvino")

    np.testing.assert_allclose(after, vectors(saved, engine="torch"), rtol=1e-5, atol=1e-5)
    assert not np.array_equal(before, after)
    assert len(list(own_cache.rglob("graph.xml"))) == 2


@pytest.mark.parametrize("part", ["graph.xml", "graph.bin"])
@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_damaged_cached_graph_is_rebuilt(
    saved: Path, own_cache: Path, part: str, content: bytes
) -> None:
    expected = vectors(saved)
    (cached,) = own_cache.rglob(part)
    cached.write_bytes(content)

    actual = vectors(saved, engine="openvino")

    np.testing.assert_array_equal(actual, expected)
    assert cached.read_bytes() != content


def test_a_cached_graph_with_wrong_weights_is_rebuilt(saved: Path, own_cache: Path) -> None:
    expected = vectors(saved)
    (cached,) = own_cache.rglob("graph.bin")
    numbers = np.fromfile(cached, np.float32)
    weights = np.abs(numbers) < 1  # excludes sizes and other metadata
    numbers[weights] = -numbers[weights]
    cached.write_bytes(numbers.tobytes())

    actual = vectors(saved, engine="openvino")

    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("cache_home", ["a file", "none"])
def test_a_model_is_converted_each_time_without_a_cache(
    saved: Path, tmp_path: Path, cache_home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if cache_home == "a file" else "")
    if cache_home == "none":
        monkeypatch.setattr(Path, "home", no_home)

    np.testing.assert_allclose(
        vectors(saved, engine="openvino"), vectors(saved, engine="torch"), rtol=1e-5, atol=1e-5
    )


def no_home() -> Path:
    """Fail like `Path.home` for a user without a home directory."""
    raise RuntimeError("Could not determine home directory.")


def test_the_cache_holds_nothing_but_the_graph(saved: Path, own_cache: Path) -> None:
    vectors(saved)

    files = sorted(path.name for path in own_cache.rglob("*") if path.is_file())
    assert files == ["graph.bin", "graph.xml"]
    assert len(list((own_cache / "ray-embeddings-server" / "openvino").iterdir())) == 1


@pytest.fixture
def engine_of(own_cache: Path) -> Callable[[Path], OpenVinoEngine]:  # noqa: ARG001
    """Return a function that creates an OpenVINO engine of a model."""

    def make(directory: Path) -> OpenVinoEngine:
        reference = SentenceTransformer(str(directory), device="cpu")
        model = TorchEngine(reference, read_checkpoint(str(directory)))
        return OpenVinoEngine(
            load_graph(model, directory), model, dtype="float32", threads=2, streams=2
        )

    return make


class FlattenedFeatures(Features):
    """Features that no graph can read."""

    def padded(self, pad_id: int) -> Any:
        """Return ids and mask flattened to one dimension."""
        return tuple(array.ravel() for array in super().padded(pad_id))


@pytest.mark.parametrize("alone", [True, False])
def test_the_engine_works_after_a_failed_pass(
    saved: Path, engine_of: Callable[[Path], OpenVinoEngine], *, alone: bool
) -> None:
    engine = engine_of(saved)
    ids = np.full(8, 10)
    features, wrong = (kind(ids, np.array([4, 4]), 0) for kind in (Features, FlattenedFeatures))
    good = engine.start(features, alone=alone).result()[0].copy()

    with pytest.raises(RuntimeError):
        engine.start(wrong, alone=alone).result()

    engine.recover()
    for _ in range(2 * PASSES_PER_STREAM):  # every infer request is free again
        np.testing.assert_array_equal(engine.start(features, alone=alone).result()[0], good)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_fails_alone(saved: Path, value: float) -> None:
    change_embeddings(saved, POISON, value)
    ids = np.array([10, 11, 12, POISON, 13, 14], np.int32)

    encoder = load_encoder(str(saved), device="cpu", engine="openvino", warm_up=False)
    encoded = encoder.encode([TokenizedInputs(ids, np.array([3, 1, 2], np.int32))])

    assert encoded.failures == (Failure(1, "non_finite_embedding"),)
    assert np.isfinite(encoded.vectors).all()
    assert encoded.vectors[[0, 2]].any(axis=1).all()


def test_a_conversion_sends_no_telemetry(
    saved: Path,
    own_cache: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenVINO's own `convert_model` reports each use to the vendor."""
    telemetry = pytest.importorskip("openvino_telemetry.main")
    sent: list[Any] = []
    monkeypatch.setattr(telemetry.TelemetrySender, "send", lambda *event: sent.append(event))
    monkeypatch.setattr(telemetry.Telemetry, "__init__", lambda *event, **_: sent.append(event))

    vectors(saved, engine="openvino")

    assert sent == []


def test_an_input_at_the_limit_matches_torch(saved: Path) -> None:
    """The graph was traced with shorter inputs."""
    ids = np.resize(np.arange(10, 40, dtype=np.int32), MAX_SEQ_LENGTH * 3)
    inputs = TokenizedInputs(ids, np.full(3, MAX_SEQ_LENGTH, np.int32))

    actual, expected = (
        load_encoder(str(saved), device="cpu", engine=engine).encode([inputs]).vectors
        for engine in ("openvino", "torch")
    )

    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_stream_is_free_after_a_pass_that_cannot_start(
    saved: Path, engine_of: Callable[[Path], OpenVinoEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(saved)
    features = Features(np.full(8, 10), np.array([4, 4]), 0)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("openvino.InferRequest.start_async", fail)
        for _ in range(2 * PASSES_PER_STREAM + 1):
            with pytest.raises(MemoryError):
                engine.start(features, alone=False)

    assert engine.start(features, alone=False).result()[1].all()
