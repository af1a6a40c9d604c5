"""Checks a Serve config file without Ray: its settings, its models' files and its API keys.

The check takes less than a second. Ray needs most of a minute to find the same mistakes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.api.auth import ApiKeys
from serve_app.checkpoints.source import find_here
from serve_app.cli.readiness import Address
from serve_app.config.http import ErrorFormat
from serve_app.config.models import BatchSettings, ServerConfig, format_validation_error
from serve_app.errors import ModelLoadError

_ALL_ADDRESSES = ("0.0.0.0", "::", "::0", "")  # noqa: S104  # only compared with, never bound


class PrepareError(Exception):
    """The server cannot be started. The message is printed to the terminal."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of a config file's first application that are needed before Ray reads the file.

    Attributes:
        address: The address at which the application will be served.
        error_format: The application's error format.
        needs_key: Whether requests need an API key.
    """

    address: Address
    error_format: ErrorFormat = "auto"
    needs_key: bool = False


def read_config(text: str) -> Plan:
    """Check the text of a Serve config file.

    Raises:
        PrepareError: The file is invalid. The message names the key.
    """
    config = _mapping(yaml.safe_load(text))
    apps = [_mapping(app) for app in _list(config.get("applications"))]
    if not apps:
        raise PrepareError("`applications` is missing or empty")
    options = _mapping(config.get("http_options"))
    host = str(options.get("host", ""))
    address = Address(
        host="localhost" if host in _ALL_ADDRESSES else host,
        port=_port(options.get("port", 8000)),
        prefix=str(apps[0].get("route_prefix") or "").rstrip("/"),
    )
    plans = [_plan(app, address) for app in apps]
    return plans[0]


def _port(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value < 1 << 16:
        raise PrepareError("http_options.port: must be a number from 1 to 65535")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    # Ray Serve's own schema reports a value of the wrong type.
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _plan(app: Mapping[str, Any], address: Address) -> Plan:
    if app.get("import_path") != "serve_app.app:build":
        return Plan(address)  # not this project's application
    try:
        config = ServerConfig.model_validate(app.get("args") or {})
    except ValidationError as error:
        raise PrepareError(format_validation_error(error, below="args")) from error
    for deployment in _list(app.get("deployments")):
        _check_user_config(_mapping(deployment))
    http = config.http
    if os.environ.get("RAY_ADDRESS"):  # the models and keys are on that cluster's machines
        return Plan(address, http.error_format, needs_key=http.api_keys_file is not None)
    try:
        keys = ApiKeys(http.api_keys_file)
    except ValueError as error:
        raise PrepareError(f"args.http: {error}") from error
    for model in config.models:
        try:
            find_here(model.source)
        except ModelLoadError as error:
            raise PrepareError(f"model {model.name}: {error}") from error
    return Plan(address, http.error_format, needs_key=keys.are_required)


def _check_user_config(deployment: Mapping[str, Any]) -> None:
    try:
        BatchSettings.model_validate(deployment.get("user_config") or {})
    except ValidationError as error:
        below = f"deployments.{deployment.get('name')}.user_config"
        raise PrepareError(format_validation_error(error, below=below)) from error


def read_config_file(config: str) -> Plan:
    """Check a Serve config file. Error messages start with the file's name."""
    try:
        return read_config(Path(config).read_text())
    except OSError as error:
        raise PrepareError(f"{config}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, PrepareError) as error:
        raise PrepareError(f"{config}: {error}") from error
    except RecursionError:
        raise PrepareError(f"{config}: the YAML is nested too deeply") from None
