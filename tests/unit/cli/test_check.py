import os
from pathlib import Path

import pytest
import yaml

from serve_app.cli.check import Plan, PrepareError, read_config
from serve_app.cli.readiness import Address
from tests.support.command import run_launcher

ROOT = Path(__file__).parents[3]


def test_shipped_configs_pass_the_check() -> None:
    configs = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]

    addresses = [read_config(config.read_text()).address for config in configs]

    assert len(addresses) >= 2
    assert all(address.port == 8000 for address in addresses)


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ("{}", Address("localhost", 8000)),
        ("{http_options: {host: 0.0.0.0, port: 9000}}", Address("localhost", 9000)),
        ("{http_options: {host: '::0'}}", Address("localhost", 8000)),
        ("{http_options: {host: 127.0.0.1}}", Address("127.0.0.1", 8000)),
    ],
)
def test_the_address_comes_from_http_options(options: str, address: Address) -> None:
    text = options[:-1] + (", " if len(options) > 2 else "") + "applications: [{name: a}]}"

    assert read_config(text) == Plan(address)


def test_the_address_has_the_first_route_prefix() -> None:
    text = "applications: [{route_prefix: /embed/}, {route_prefix: /other}]"

    assert read_config(text).address == Address("localhost", 8000, "/embed")


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_an_error_names_the_key(text: str, message: str) -> None:
    with pytest.raises(PrepareError, match=message):
        read_config(text)


@pytest.mark.parametrize("source", ["/no/such/directory", "~nobody-of-that-name/model"])
def test_a_missing_model_directory_is_an_error(source: str) -> None:
    models = [{"name": "m", "source": source}]
    app = {"import_path": "serve_app.app:build", "args": {"models": models}}

    with pytest.raises(PrepareError, match=r"model m: .*no such directory"):
        read_config(yaml.safe_dump({"applications": [app]}))


def application(tmp_path: Path, **http: object) -> str:
    """Return a config of this project, whose model directory exists but has no model files."""
    models = [{"name": "m", "source": str(tmp_path)}]
    args = {"models": models, "http": http}
    return yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]})


def test_a_missing_api_keys_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=r"^args\.http: api_keys_file cannot be read: No such"):
        read_config(application(tmp_path, api_keys_file=str(tmp_path / "nowhere")))


def test_a_pipe_as_api_keys_file_does_not_block(tmp_path: Path) -> None:
    """No process may ever write to the pipe."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(PrepareError, match=r"^args\.http: api_keys_file is not a regular file$"):
        read_config(application(tmp_path, api_keys_file=str(tmp_path / "pipe")))


def test_the_plan_has_the_key_and_error_settings(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-1\n")

    plan = read_config(application(tmp_path, api_keys_file=str(keys), error_format="openai"))

    assert (plan.needs_key, plan.error_format) == (True, "openai")
    assert not read_config(application(tmp_path)).needs_key


@pytest.mark.parametrize(
    "text", ["applications: 5", "applications: " + "[" * 5000, "applications: {a: 1}"]
)
def test_a_malformed_config_is_a_one_line_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)

    done = run_launcher(tmp_path, "--check", "--config", "config.yaml")

    assert done.returncode == 2
    assert done.stderr.startswith("config.yaml: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_user_config_key_is_an_error(tmp_path: Path) -> None:
    """A running replica only logs the mistake, and Ray Serve's status stays healthy."""
    config = yaml.safe_load(application(tmp_path))
    config["applications"][0]["deployments"] = [{"name": "m", "user_config": {"max_tokens": 1}}]

    with pytest.raises(PrepareError) as raised:
        read_config(yaml.safe_dump(config))

    assert (
        str(raised.value)
        == "deployments.m.user_config.max_tokens: unknown setting; did you mean `max_batch_tokens`?"
    )


@pytest.mark.parametrize(
    ("prompts", "status", "output"),
    [
        ({}, 0, "config.yaml: no errors in `args`"),
        (7, 2, "args.models.0.prompts: Input should be a valid"),
    ],
)
def test_check_does_not_start_the_server(
    tmp_path: Path, prompts: object, status: int, output: str
) -> None:
    config = yaml.safe_load(application(tmp_path))
    config["applications"][0]["args"]["models"][0]["prompts"] = prompts
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    done = run_launcher(tmp_path, "--check", "--config", "config.yaml")

    assert done.returncode == status
    assert output in done.stdout + done.stderr


def test_one_mistake_in_a_model_is_one_error() -> None:
    """Pydantic's `min_length` would add that the list of models is too short."""
    models = [{"name": "m", "source": "org/model", "alias": ["n"]}]
    app = {"import_path": "serve_app.app:build", "args": {"models": models}}

    with pytest.raises(PrepareError) as raised:
        read_config(yaml.safe_dump({"applications": [app]}))

    assert str(raised.value) == "args.models.0.alias: unknown setting; did you mean `aliases`?"
