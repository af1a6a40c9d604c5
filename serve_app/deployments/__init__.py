"""The Ray Serve deployments (the ingress and the model replicas), their request router and autoscaling policy."""
