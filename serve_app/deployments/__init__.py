"""The Ray Serve deployments: the ingress, the model replicas, and the code for replicas and autoscaling."""
