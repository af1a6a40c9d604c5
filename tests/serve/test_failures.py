"""Failures of an input, a model or a replica: which requests get which error, and how the server recovers."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import yaml

from tests.support.http import FLAT_ERROR_KEYS, post
from tests.support.metrics import known_replicas, replicas
from tests.support.server import Server, answers, wait_for


@pytest.mark.both_modes
def test_only_the_failing_input_gets_an_error(server: Server) -> None:
    texts = ["fine", "poison", "slow", "fine", "poison", "fine"] * 4

    with ThreadPoolExecutor(24) as clients:
        statuses = list(
            clients.map(lambda t: post(server.plumbing_url, {"input": t}).status_code, texts)
        )

    assert statuses == [424 if text == "poison" else 200 for text in texts]


def test_the_error_names_the_failed_input(server: Server) -> None:
    answer = post(server.plumbing_url, {"input": ["fine", "fine", "poison"]})

    body = answer.json()
    assert answer.status_code == 424
    assert set(body) == FLAT_ERROR_KEYS
    assert (body["error"], body["error_type"]) == ("Inference failed", "backend")
    assert (body["code"], body["param"]) == ("inference_failed", "input[2]")


def test_a_non_embedding_model_is_listed_and_answers_424(server: Server) -> None:
    """A classifier gets neither a default pooling nor a replica, which would delay `/ready`."""
    answer = post(server.plumbing_url, {"input": "fine", "model": "reranker"})
    card = requests.get(f"{server.plumbing_url}/v1/models/reranker", timeout=60).json()

    body = answer.json()
    assert answer.status_code == 424
    assert set(body) == FLAT_ERROR_KEYS
    assert (body["error"], body["error_type"]) == ("Model is not an embedding model", "backend")
    assert (body["code"], body["param"]) == ("not_an_embedding_model", "model")
    assert (card["id"], card["embeds"]) == ("reranker", False)


@pytest.mark.slow
@pytest.mark.both_modes
@pytest.mark.parametrize("word", ["death", "broken"])
def test_an_input_that_kills_two_replicas_is_refused(server: Server, word: str) -> None:
    request_id = f"id-{uuid.uuid4().hex}"
    with ThreadPoolExecutor(4) as clients:
        poison_pill = clients.submit(
            post,
            server.plumbing_url,
            {"input": ["fine", word]},
            headers={"x-request-id": request_id},
        )
        others = [clients.submit(post, server.plumbing_url, {"input": "slow"}) for _ in range(3)]

        assert [other.result().status_code for other in others] == [200] * 3
    answer = poison_pill.result()
    assert answer.status_code == 424
    assert (answer.json()["code"], answer.json()["param"]) == ("inference_failed", "input")
    assert "died twice while processing inputs 0 to 1" in answer.json()["message"]
    wait_for(
        lambda: any(
            "died twice" in line and request_id in line
            for line in server.read_logs("replica_plumbing_ingress*").splitlines()
        ),
        timeout_s=10,
        what="the log has the failed request's id",
    )
    wait_for(
        lambda: answers(f"{server.plumbing_url}/ready"),
        timeout_s=100,
        what="a new replica is ready",
    )
    assert post(server.plumbing_url, {"input": "fine"}).status_code == 200


@pytest.mark.slow
@pytest.mark.both_modes
def test_a_replica_with_a_hung_model_is_replaced(server: Server) -> None:
    with ThreadPoolExecutor(1) as client:
        hanging = client.submit(post, server.plumbing_url, {"input": "wedge"})

        wait_for(
            lambda: not answers(f"{server.plumbing_url}/ready"), timeout_s=30, what="/ready fails"
        )
        # The request is retried on the next replica, which hangs too.
        assert hanging.result().status_code == 424
    wait_for(
        lambda: post(server.plumbing_url, {"input": "fine"}).status_code == 200,
        timeout_s=100,
        what="a new replica answers",
    )


def test_batch_settings_change_without_a_restart(server: Server) -> None:
    before = known_replicas(server)

    deploy(
        server, {"deployments": [{"name": "obedient", "user_config": {"max_batch_tokens": 128}}]}
    )

    wait_for(
        lambda: "'max_batch_tokens': 128" in server.read_logs(),
        timeout_s=100,
        what="the new settings are applied",
    )
    wait_for(
        lambda: answers(f"{server.plumbing_url}/ready"), timeout_s=100, what="the server is ready"
    )
    assert replicas(server) == before


def test_invalid_batch_settings_leave_the_replica_unchanged(server: Server) -> None:
    before = known_replicas(server)

    deploy(server, {"deployments": [{"name": "obedient", "user_config": {"max_batch_tokenz": 9}}]})

    wait_for(
        lambda: "max_batch_tokenz" in server.read_logs("replica_plumbing_obedient*"),
        timeout_s=100,
        what="the invalid setting is logged",
    )
    wait_for(
        lambda: answers(f"{server.plumbing_url}/ready"), timeout_s=100, what="the server is ready"
    )
    assert replicas(server) == before


def deploy(server: Server, change: dict[str, Any]) -> None:
    """Deploy the server's config with a change to the plumbing application."""
    config = yaml.safe_load(server.config.read_text())
    application = config["applications"][1]
    application.update(change)
    server.deploy(config)
