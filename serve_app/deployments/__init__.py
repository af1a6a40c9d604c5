"""The Ray Serve deployments: the ingress, a model's replica, and what only a replica or its controller has."""
