"""A node of the cluster fails, and a replica with it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.server import ROOT, free_port


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_failure_fails_no_request(tmp_path: Path) -> None:
    results_file = tmp_path / "results.json"
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SERVE_"))}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.support.scripts.lose_a_node",
                str(free_port()),
                str(results_file),
            ],
            cwd=ROOT,
            env={
                **inherited,
                "RAY_TMPDIR": folder,
                "PYTHONPATH": str(ROOT),
                "RAY_USAGE_STATS_ENABLED": "0",
                "XDG_CACHE_HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            timeout=380,
            check=False,
        )

    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    results = json.loads(results_file.read_text())
    print(results)
    assert set(results["statuses"]) == {"200"}
