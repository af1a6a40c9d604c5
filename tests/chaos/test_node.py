"""A node of the cluster dies with what runs on it."""

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
def test_a_node_that_dies_loses_no_request(tmp_path: Path) -> None:
    """What its replica had is sent to the one on the other node, and a new node gets a replica."""
    notes = tmp_path / "notes.json"
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp"
    ) as folder:  # sockets need a short path
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SERVE_"))}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.support.scripts.lose_a_node",
                str(free_port()),
                str(notes),
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
    seen = json.loads(notes.read_text())
    print(seen)
    assert set(seen["statuses"]) == {"200"}
