"""Sends work from the ingress to a model's replicas: chunks, queue, calls, retries."""
