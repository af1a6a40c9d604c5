"""The README's tables, made from the code. `python -m tests.support.readme` writes them into README.md."""

import ast
import re
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from serve_app.config.deployments import DeploymentOptions, IngressOptions, is_undocumented
from serve_app.config.http import HttpConfig
from serve_app.config.models import ModelConfig, ServerConfig
from serve_app.messages import ReplicaState
from serve_app.observability.metrics import Metrics, exposition
from tests.serve.clients.table import compatibility_table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def configuration_table() -> str:
    """Return every setting with its default and meaning."""
    places: list[tuple[str, type[BaseModel]]] = [
        ("models[].", ModelConfig),
        ("models[].deployment.", DeploymentOptions),
        ("http.", HttpConfig),
        ("ingress.", IngressOptions),
    ]
    rows = [row for prefix, model in places for row in _settings(prefix, model)]
    assert set(ServerConfig.model_fields) == {"models", "http", "ingress"}
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _settings(prefix: str, model: type[BaseModel]) -> list[str]:
    # The ingress has all options of a deployment; only what differs is told again.
    names = IngressOptions.__annotations__ if model is IngressOptions else model.model_fields
    rows, as_in_serve = [], []
    for name in names:
        field = model.model_fields[name]
        if name == "deployment":
            continue  # told under a prefix of its own
        if is_undocumented(field):
            continue
        if field.description is None:
            as_in_serve.append(f"`{name}`")
            continue
        required = field.default is PydanticUndefined
        default = "required" if required else f"`{_yaml(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {default} | {field.description} |")
    if as_in_serve:
        rows.append(f"| `{prefix}...` | Ray Serve's | {', '.join(as_in_serve)} |")
    return rows


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return "[]" if value == () else str(value)


def metrics_table() -> str:
    """Return every metric with its labels and meaning, from a scrape that has a sample of each."""
    state = ReplicaState("r", 0, 0, 0.0, 0, 0, 0, 0)
    text = exposition({"r": Metrics().snapshot()}, {"m": [state]}).decode()
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (.*)$", text, re.MULTILINE))
    rows = [
        f"| `{name}` | {kinds[name]} | {helps[name]} |" for name in helps if "process" not in name
    ]
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *rows])


def modules_table() -> str:
    """Return every module of the package, and those of its packages, with the first line of its charter."""
    package = ROOT / "serve_app"
    rows = []
    for path in sorted([*package.glob("[!_]*.py"), *package.glob("*/*.py")]):
        charter = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = path.relative_to(package).as_posix().removesuffix("__init__.py")
        rows.append(f"| `{name}` | {charter.splitlines()[0]} |")
    return "\n".join(["| file | lives here |", "|---|---|", *rows])


def filled(text: str) -> str:
    """Return a README's text with its tables as they are made now."""
    tables = {
        "configuration": configuration_table(),
        "metrics": metrics_table(),
        "modules": modules_table(),
        "clients": compatibility_table(),
    }
    for name, table in tables.items():
        start, end = f"<!-- {name}: python -m tests.support.readme -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        assert after, f"README.md has no place for the table {name}"
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
