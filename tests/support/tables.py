"""The documentation's tables, made from the code. `python -m tests.support.tables` writes them.

A table stands between two comments in its page, `<!-- name: ... -->` and `<!-- end of name -->`.
"""

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from serve_app.config.deployments import ModelOptions, is_undocumented
from serve_app.config.http import HttpConfig
from serve_app.config.models import ModelConfig, ServerConfig
from serve_app.messages import ReplicaState
from serve_app.observability.metrics import Metrics, exposition
from tests.serve.clients.table import compatibility_table

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"

Tables = Mapping[str, Callable[[], str]]


def settings_table(prefix: str, model: type[BaseModel]) -> str:
    """Return every documented setting of a section with its default and meaning, required ones first."""
    rows, as_in_serve = [], []
    for name, field in sorted(
        model.model_fields.items(), key=lambda item: not item[1].is_required()
    ):
        if name == "deployment" or is_undocumented(field):
            continue
        if field.description is None:
            as_in_serve.append(f"`{name}`")
            continue
        default = "required" if field.is_required() else f"`{_yaml(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {default} | {field.description} |")
    if as_in_serve:
        rows.append(f"| `{prefix}...` | Ray Serve's | {', '.join(as_in_serve)} |")
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return "[]" if value == () else str(value)


def metrics_table() -> str:
    """Return every metric with its type and meaning, from a scrape that has a sample of each."""
    state = ReplicaState("r", 0, 0.0, 0, 0, 0)
    text = exposition({"r": Metrics().snapshot()}, {"m": [state]}).decode()
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (.*)$", text, re.MULTILINE))
    rows = [
        f"| `{name}` | {kinds[name]} | {helps[name]} |" for name in helps if "process" not in name
    ]
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *rows])


def modules_table() -> str:
    """Return every package in bold, each above its modules, with the first line of its charter."""
    package = ROOT / "serve_app"
    paths = [path for path in package.rglob("*.py") if path != package / "__init__.py"]
    rows = []
    for path in sorted(paths, key=lambda path: _place(path.relative_to(package))):
        charter = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = path.relative_to(package).as_posix()
        shown = f"`{name}`"
        if path.name == "__init__.py":
            shown = f"**`{name.removesuffix('__init__.py')}`**"
        rows.append(f"| {shown} | {charter.splitlines()[0]} |")
    return "\n".join(["| module | responsibility |", "|---|---|", *rows])


def _place(path: Path) -> tuple[tuple[str, ...], str]:
    # Packages in the order of their names, those at the top first; in each its charter first.
    name = "" if path.name == "__init__.py" else path.name
    return path.parent.parts, name


PAGES: Final[Mapping[Path, Tables]] = {
    DOCS / "configuration.md": {
        "settings-models": lambda: settings_table("models[].", ModelConfig),
        "settings-deployments": lambda: settings_table("models[].deployment.", ModelOptions),
        "settings-http": lambda: settings_table("http.", HttpConfig),
    },
    DOCS / "operations.md": {"metrics": metrics_table},
    DOCS / "architecture.md": {"modules": modules_table},
    DOCS / "clients.md": {"clients": compatibility_table},
}
# The ingress has no documented setting of its own. It takes the options of a model's deployment.
assert set(ServerConfig.model_fields) == {"models", "http", "ingress"}, "a section has no table"


def filled(page: Path) -> str:
    """Return a page's text with its tables as the code makes them now."""
    text = page.read_text()
    for name, table in PAGES[page].items():
        place = re.search(rf"<!-- {name}:[^>]*-->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)
        assert place, f"{page.name} has no place for the table {name}"
        text = f"{text[: place.start(1)]}{table()}\n{text[place.end(1) :]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page))
