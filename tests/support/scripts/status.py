"""Print Ray Serve's status of an application. Runs on the server's cluster."""

import sys

import ray
from ray import serve

ray.init(address="auto", log_to_driver=False, logging_level="error")
print(serve.status().applications[sys.argv[1]].status.value)
