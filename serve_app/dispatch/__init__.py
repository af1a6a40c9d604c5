"""From the ingress to a model's replicas: chunks, the queue, calls, retries."""
