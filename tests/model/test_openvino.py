"""The engine for CPUs: when it is taken, what it keeps, and how it fails."""

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
    """Return the vectors of two inputs."""
    encoder = load_encoder(str(directory), device="cpu", engine=engine, dtype=dtype, warm_up=False)
    encoded = encoder.encode([IDS])
    assert encoded.failures == ()
    return encoded.vectors


def change_embeddings(directory: Path, rows: Any, factor: float) -> None:
    """Multiply rows of the table of token embeddings, and save the model in its place."""
    model = SentenceTransformer(str(directory), device="cpu")
    with torch.no_grad():
        model[0].model.get_input_embeddings().weight[rows] *= factor
    model.save(str(directory))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Give the directory of a model that a test may change."""
    return build(tmp_path, bert, "mean")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be converted any more."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("an operator without a translation")

    monkeypatch.setattr(openvino, "convert", fail)


def test_a_transformer_gets_openvino(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without being asked for it; one line of the log says so."""
    with caplog.at_level(logging.INFO, logger="ray.serve.embeddings"):
        encoder = load_encoder(str(saved), device="cpu")

    assert encoder.engine_name == "openvino"
    assert f"{saved}: engine openvino in f32" in [r.getMessage() for r in caplog.records]


def test_torch_is_taken_where_it_is_asked_for(saved: Path) -> None:
    """Also where OpenVINO could run the model."""
    assert load_encoder(str(saved), device="cpu", engine="torch").engine_name == "torch"


def test_a_static_model_stays_with_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line of the log says why."""
    with caplog.at_level(logging.INFO, logger="ray.serve.embeddings"):
        encoder = load_encoder(str(static(tmp_path)), device="cpu")

    assert encoder.engine_name == "torch"
    assert "engine torch, because it is a StaticEmbedding" in caplog.text


def test_a_model_without_a_translation_stays_with_torch(
    saved: Path,
    own_cache: Path,  # noqa: ARG001
    no_conversion: None,  # noqa: ARG001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says what is missing."""
    with caplog.at_level(logging.INFO, logger="ray.serve.embeddings"):
        encoder = load_encoder(str(saved), device="cpu")

    assert encoder.engine_name == "torch"
    assert "an operator without a translation" in caplog.text


def test_a_graph_that_gives_other_vectors_is_not_used(
    saved: Path,
    own_cache: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A conversion that goes wrong without an error is found by comparing with torch."""

    def convert_wrongly(modules: list[Any], **options: Any) -> Any:
        modules = deepcopy(modules)
        with torch.no_grad():
            modules[0].model.get_input_embeddings().weight.mul_(1.5)
        return openvino_export.convert(modules, **options)

    monkeypatch.setattr(openvino, "convert", convert_wrongly)
    monkeypatch.setattr(openvino, "keep", lambda *_: False)
    with pytest.raises(ModelLoadError, match="its vectors are not those of torch"):
        vectors(saved, engine="openvino")


@pytest.mark.parametrize(
    ("model", "reason"),
    [(static, "StaticEmbedding"), (lambda d: build(d, bert, "mean"), "not installed")],
    ids=["static", "not installed"],
)
def test_openvino_that_was_asked_for_and_cannot_be_fails_the_start(
    tmp_path: Path, model: Callable[[Path], Path], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says why."""
    if reason == "not installed":
        monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(ModelLoadError, match=f"engine openvino cannot run it: .*{reason}"):
        load_encoder(str(model(tmp_path)), device="cpu", engine="openvino")


def test_without_openvino_torch_is_taken(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "openvino", None)

    assert load_encoder(str(saved), device="cpu").engine_name == "torch"


def test_inputs_beyond_the_positions_are_left_to_torch(saved: Path) -> None:
    """Torch refuses them; a graph would read zeros."""
    write_json(saved / "sentence_bert_config.json", {"max_seq_length": 64})

    with pytest.raises(ModelLoadError, match="longer than its 40 positions"):
        load_encoder(str(saved), device="cpu", engine="openvino", warm_up=False)


def test_a_graph_is_kept_for_the_next_start(
    saved: Path, own_cache: Path, request: pytest.FixtureRequest
) -> None:
    """It is read and not made again, and gives the same vectors."""
    first = vectors(saved)
    request.getfixturevalue("no_conversion")

    second = vectors(saved, engine="openvino")

    np.testing.assert_array_equal(first, second)
    assert len(list(own_cache.rglob("graph.xml"))) == 1


def test_another_model_in_the_same_place_has_a_graph_of_its_own(
    saved: Path, own_cache: Path
) -> None:
    """What counts is what the files hold, not where they lie or when they were written."""
    before = vectors(saved)
    change_embeddings(saved, slice(None), 0.5)

    after = vectors(saved, engine="openvino")

    np.testing.assert_allclose(after, vectors(saved, engine="torch"), rtol=1e-5, atol=1e-5)
    assert not np.array_equal(before, after)
    assert len(list(own_cache.rglob("graph.xml"))) == 2


@pytest.mark.parametrize("part", ["graph.xml", "graph.bin"])
@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_damaged_graph_is_made_anew(
    saved: Path, own_cache: Path, part: str, content: bytes
) -> None:
    """A cache never breaks a start, nor changes a vector."""
    expected = vectors(saved)
    (kept,) = own_cache.rglob(part)
    kept.write_bytes(content)

    found = vectors(saved, engine="openvino")

    np.testing.assert_array_equal(found, expected)
    assert kept.read_bytes() != content


def test_a_graph_of_another_model_is_made_anew(saved: Path, own_cache: Path) -> None:
    """Also one that can be read: its vectors give it away."""
    expected = vectors(saved)
    (kept,) = own_cache.rglob("graph.bin")
    numbers = np.fromfile(kept, np.float32)
    weights = np.abs(numbers) < 1  # and not sizes and the like
    numbers[weights] = -numbers[weights]
    kept.write_bytes(numbers.tobytes())

    found = vectors(saved, engine="openvino")

    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_place_to_keep_it_a_graph_is_made_each_time(
    saved: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that cannot be written costs time and nothing else."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if place == "a file" else "")
    if place == "nowhere":
        monkeypatch.setattr(Path, "home", no_home)

    np.testing.assert_allclose(
        vectors(saved, engine="openvino"), vectors(saved, engine="torch"), rtol=1e-5, atol=1e-5
    )


def no_home() -> Path:
    """Fail as `Path.home` does for a user without a home."""
    raise RuntimeError("Could not determine home directory.")


def test_nothing_but_the_graph_is_left_in_the_cache(saved: Path, own_cache: Path) -> None:
    """What is written meanwhile goes away."""
    vectors(saved)

    files = sorted(path.name for path in own_cache.rglob("*") if path.is_file())
    assert files == ["graph.bin", "graph.xml"]
    assert len(list((own_cache / "ray-embeddings-server" / "openvino").iterdir())) == 1


@pytest.fixture
def engine_of(own_cache: Path) -> Callable[[Path], OpenVinoEngine]:  # noqa: ARG001
    """Give a maker of engines."""

    def make(directory: Path) -> OpenVinoEngine:
        reference = SentenceTransformer(str(directory), device="cpu")
        model = TorchEngine(reference, read_checkpoint(str(directory)))
        return OpenVinoEngine(
            load_graph(model, directory), model, dtype="float32", threads=2, streams=2
        )

    return make


class Shapeless(Features):
    """Features that no graph can read."""

    def padded(self, pad_id: int) -> Any:
        """Forget which ids are whose."""
        return tuple(array.ravel() for array in super().padded(pad_id))


@pytest.mark.parametrize("alone", [True, False])
def test_a_pass_that_fails_leaves_the_engine_well(
    saved: Path, engine_of: Callable[[Path], OpenVinoEngine], *, alone: bool
) -> None:
    """The next pass gives vectors."""
    engine = engine_of(saved)
    ids = np.full(8, 10)
    features, wrong = (kind(ids, np.array([4, 4]), 0) for kind in (Features, Shapeless))
    good = engine.start(features, alone=alone).result()[0].copy()

    with pytest.raises(RuntimeError):
        engine.start(wrong, alone=alone).result()

    engine.recover()
    for _ in range(2 * PASSES_PER_STREAM):  # each place for a pass is there again
        np.testing.assert_array_equal(engine.start(features, alone=alone).result()[0], good)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_fails_alone(saved: Path, value: float) -> None:
    """Whatever stands beside it in the pass."""
    change_embeddings(saved, POISON, value)
    ids = np.array([10, 11, 12, POISON, 13, 14], np.int32)

    encoder = load_encoder(str(saved), device="cpu", engine="openvino", warm_up=False)
    encoded = encoder.encode([TokenizedInputs(ids, np.array([3, 1, 2], np.int32))])

    assert encoded.failures == (Failure(1, "non_finite_embedding"),)
    assert np.isfinite(encoded.vectors).all()
    assert encoded.vectors[[0, 2]].any(axis=1).all()


def test_a_conversion_tells_nobody(
    saved: Path,
    own_cache: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenVINO's own `convert_model` reports each use to its vendor; a server that embeds private texts does not."""
    telemetry = pytest.importorskip("openvino_telemetry.main")
    sent: list[Any] = []
    monkeypatch.setattr(telemetry.TelemetrySender, "send", lambda *event: sent.append(event))
    monkeypatch.setattr(telemetry.Telemetry, "__init__", lambda *event, **_: sent.append(event))

    vectors(saved, engine="openvino")

    assert sent == []


def test_an_input_at_the_limit_has_the_vector_of_torch(saved: Path) -> None:
    """The graph was made with shorter ones."""
    ids = np.resize(np.arange(10, 40, dtype=np.int32), MAX_SEQ_LENGTH * 3)
    inputs = TokenizedInputs(ids, np.full(3, MAX_SEQ_LENGTH, np.int32))

    found, expected = (
        load_encoder(str(saved), device="cpu", engine=engine).encode([inputs]).vectors
        for engine in ("openvino", "torch")
    )

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_stream_whose_pass_cannot_be_started_is_there_for_the_next(
    saved: Path, engine_of: Callable[[Path], OpenVinoEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often."""
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
