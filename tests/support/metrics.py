"""Read the metrics that a server publishes under `/metrics`."""

import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.applications import OBEDIENT
from tests.support.server import Server, wait_for


def samples(url: str, name: str, **labels: str) -> list[Sample]:
    """Scrape an application and return the samples with this name and these labels."""
    answer = requests.get(f"{url}/metrics", timeout=60)
    assert answer.status_code == 200
    return [
        sample
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def total(url: str, name: str, **labels: str) -> float:
    """Scrape an application and return the sum of the samples with this name and these labels."""
    return sum(sample.value for sample in samples(url, name, **labels))


def replicas(server: Server, model: str = OBEDIENT) -> set[str]:
    """Return the ids of the replicas of one of the plumbing application's models."""
    memory = samples(server.plumbing_url, "embeddings_replica_memory_bytes", model=model)
    return {sample.labels["replica"] for sample in memory}


def known_replicas(server: Server, model: str = OBEDIENT) -> set[str]:
    """Return the ids of a model's replicas once there is one. A new replica's state arrives about a second late."""
    wait_for(lambda: bool(replicas(server, model)), timeout_s=30, what="a replica's state arrives")
    return replicas(server, model)
