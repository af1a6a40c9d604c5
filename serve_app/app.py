"""The composition root: `build` turns the settings into a Ray Serve application.

A Serve config file refers to it as `import_path: serve_app.app:build`.
"""

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from serve_app.api.auth import ApiKeys
from serve_app.checkpoints.metadata import read_checkpoint
from serve_app.config.deployments import DeploymentOptions
from serve_app.config.http import HttpConfig
from serve_app.config.models import ModelConfig, ServerConfig
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.replica import EmbeddingReplica
from serve_app.deployments.replica_router import LeastOutstandingRouter

# Ray Serve polls for a free replica on behalf of a waiting call. Its default pauses (25 ms, doubled
# up to 500 ms) are longer than a batch takes.
_PAUSES = {"initial_backoff_s": 0.005, "backoff_multiplier": 1.5, "max_backoff_s": 0.05}
# Seconds between two reports of a replica's state to the ingress replicas.
_STATE_PERIOD_S = 1.0


def build(config: ServerConfig) -> Application:
    """Build the application from the `args:` of a Serve config file.

    Raises:
        ModelLoadError: a model's files are missing, or the model cannot be served.
        ValueError: an autoscaling option is unknown, or the API keys cannot be read.
    """
    return compose(config, replica=EmbeddingReplica)


def compose(config: ServerConfig, *, replica: type) -> Application:
    """Combine the ingress with a deployment of `replica` for each embedding model."""
    # Check the API keys now. Otherwise Ray Serve would stop a running ingress and try to replace it
    # with one that cannot start.
    ApiKeys(config.http.api_keys_file)
    models = {
        model.name: _model(model, replica, config.http)
        for model in config.models
        if read_checkpoint(model.source, revision=model.revision).embeds
    }
    return _ingress(config).bind(config, models)


def _model(model: ModelConfig, replica: type, http: HttpConfig) -> Application:
    router = RequestRouterConfig(
        request_router_class=LeastOutstandingRouter,
        request_routing_stats_period_s=_STATE_PERIOD_S,
        **_PAUSES,
    )
    options = {"request_router_config": router, **_options(model.deployment, http)}
    options["user_config"] = model.batch_settings
    scaling = model.deployment.autoscaling_config
    if scaling is not None or model.deployment.num_replicas == "auto":
        options["autoscaling_config"] = {"policy": _policy(model), **(scaling or {})}
    return serve.deployment(replica).options(name=model.deployment_name, **options).bind(model)


def _policy(model: ModelConfig) -> dict[str, object]:
    settings = {
        "target_utilization": model.target_utilization,
        "target_wait_s": model.target_wait_s,
    }
    return {
        "policy_function": "serve_app.deployments.autoscaling:WorkPolicy",
        "policy_kwargs": settings,
    }


def _ingress(config: ServerConfig) -> serve.Deployment:
    """Return the ingress deployment.

    When Ray Serve rejects a request, it does so in plain text and before our code runs. Unless they
    are set, its limits are therefore higher than ours, so that requests that we reject still reach
    our code (`RequestScope.admit`).
    """
    router = RequestRouterConfig(**_PAUSES)
    limits = {
        "max_ongoing_requests": 4 * (config.http.max_concurrent_requests or 25_000),
        "max_queued_requests": -1,
    }
    options = {"request_router_config": router, **limits, **_options(config.ingress, config.http)}
    return serve.deployment(serve.ingress()(Ingress)).options(name=config.ingress_name, **options)


def _options(options: DeploymentOptions, http: HttpConfig) -> dict[str, object]:
    unknown = set(options.autoscaling_config or {}) - set(AutoscalingConfig.model_fields)
    if unknown:  # Ray Serve silently ignores unknown options
        raise ValueError(f"autoscaling_config: unknown options {', '.join(sorted(unknown))}")
    refusal = BackpressureConfig(status_code=429, retry_after_s=http.retry_after_s)
    defaults = {
        "backpressure_config": refusal,
        # The time that a stopping replica has to finish its requests. An idle replica stops at once.
        "graceful_shutdown_timeout_s": http.request_timeout_s,
    }
    return defaults | options.given()
