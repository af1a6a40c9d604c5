import os
from pathlib import Path

import pytest
import yaml

from serve_app.cli.check import Plan, PrepareError, read_config
from serve_app.cli.readiness import Address
from tests.support.command import run_launcher

ROOT = Path(__file__).parents[3]


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
