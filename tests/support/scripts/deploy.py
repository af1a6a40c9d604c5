"""Run `serve deploy CONFIG` against the dashboard of the server's cluster."""

import subprocess
import sys
from pathlib import Path

import ray

context = ray.init(address="auto", log_to_driver=False, logging_level="error")
serve = Path(sys.executable).with_name("serve")
subprocess.run([serve, "deploy", sys.argv[1], "-a", f"http://{context.dashboard_url}"], check=True)
