"""Tests of the Serve config files in the repository."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.config.models import ServerConfig

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_configs_match_both_schemas(path: Path) -> None:
    config = yaml.safe_load(path.read_text())

    ServeDeploySchema.model_validate(config)
    for application in config["applications"]:
        assert application["import_path"] == "serve_app.app:build"
        ServerConfig.model_validate(application["args"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_configs_start_with_their_purpose(path: Path) -> None:
    head = "\n".join(path.read_text().splitlines()[:2])

    assert head.startswith("# ")
    assert "Run: " in head
    assert path.name in head
