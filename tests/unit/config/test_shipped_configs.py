"""Every Serve config file that is shipped can be run."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.config.models import ServerConfig

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_config_is_what_ray_serve_and_the_server_take(path: Path) -> None:
    """Ray Serve's schema takes the file, and ours what stands under `args`."""
    config = yaml.safe_load(path.read_text())

    ServeDeploySchema.model_validate(config)
    for application in config["applications"]:
        assert application["import_path"] == "serve_app.app:build"
        ServerConfig.model_validate(application["args"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_config_opens_with_whom_it_is_for(path: Path) -> None:
    """The first lines say for whom and how to run it."""
    head = "\n".join(path.read_text().splitlines()[:2])

    assert head.startswith("# ")
    assert "Run: " in head
    assert path.name in head
