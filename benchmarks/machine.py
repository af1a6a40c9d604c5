"""Describe the environment of a benchmark run: machine, package versions and command."""

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.compare.contenders import INFINITY, ROOT, THREADS

_PACKAGES = (
    "ray",
    "torch",
    "openvino",
    "sentence-transformers",
    "transformers",
    "tokenizers",
    "numpy",
)
_INFINITY_PACKAGES = ("infinity_emb", "torch", "transformers", "sentence-transformers")


def describe() -> dict[str, Any]:
    """Return the description as a JSON-serializable dict."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        "processor": _processor(),
        "cores": THREADS,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "wrk": _output(["wrk", "-v"]).partition("\n")[0] if shutil.which("wrk") else None,
        "versions": {name: _version(name) for name in _PACKAGES},
        "versions_of_infinity": _infinity_versions(),
    }


def summary_line(about: dict[str, Any]) -> str:
    """Return the processor, the number of cores and the date in one line."""
    return f"{about['processor']}, {about['cores']} cores, {about['date']}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _infinity_versions() -> dict[str, str] | None:
    if not INFINITY.exists():
        return None
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    command = [str(INFINITY.with_name("python")), "-c", code, *_INFINITY_PACKAGES]
    return dict(zip(_INFINITY_PACKAGES, _output(command).split(), strict=False))


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
