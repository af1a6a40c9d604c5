import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from serve_app.proxy.environment import haproxy_binary, haproxy_problem, haproxy_settings


def no_binary(_env: Mapping[str, str]) -> str | None:
    """Find no HAProxy."""
    return None


def some_binary(_env: Mapping[str, str]) -> str | None:
    """Find an HAProxy."""
    return "/usr/sbin/haproxy"


def test_a_missing_binary_is_a_problem() -> None:
    assert haproxy_problem({}, binary=no_binary, is_free=lambda _port: True) is not None


def test_a_binary_and_free_ports_are_enough() -> None:
    assert haproxy_problem({}, binary=some_binary, is_free=lambda _port: True) is None


@pytest.mark.parametrize("taken", [8404, 9101, 8500])
def test_a_haproxy_port_in_use_is_a_problem(taken: int) -> None:
    problem = haproxy_problem({}, binary=some_binary, is_free=lambda port: port != taken)

    assert problem is not None
    assert str(taken) in problem


def test_a_haproxy_port_can_be_changed() -> None:
    env = {"RAY_SERVE_HAPROXY_STATS_PORT": "18404"}

    assert haproxy_problem(env, binary=some_binary, is_free=lambda port: port != 8404) is None
    assert haproxy_problem(env, binary=some_binary, is_free=lambda port: port != 18404) is not None


@pytest.mark.parametrize(("exit_code", "usable"), [(0, True), (1, False)])
def test_a_binary_must_run(
    tmp_path: Path,
    exit_code: int,
    usable: bool,  # noqa: FBT001
) -> None:
    binary = tmp_path / "haproxy"
    binary.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    binary.chmod(0o755)

    found = haproxy_binary({"RAY_SERVE_HAPROXY_BINARY_PATH": str(binary)})

    assert found == (str(binary) if usable else None)


def test_a_missing_configured_binary_has_no_fallback(tmp_path: Path) -> None:
    """Ray Serve would not start another binary either."""
    assert haproxy_binary({"RAY_SERVE_HAPROXY_BINARY_PATH": str(tmp_path / "none")}) is None


def test_haproxy_files_are_in_one_folder(tmp_path: Path) -> None:
    settings = haproxy_settings(str(tmp_path))
    del settings["RAY_SERVE_HAPROXY_MAXCONN"]
    command = settings.pop("RAY_SERVE_HAPROXY_BINARY_PATH")

    assert len(settings) == 5
    assert all(Path(path) in {tmp_path, tmp_path / Path(path).name} for path in settings.values())
    assert Path(command).name == "embeddings-haproxy"


@pytest.mark.parametrize(
    ("files", "connections"),
    [(resource.RLIM_INFINITY, 20_000), (1 << 20, 20_000), (25_500, 10_000), (4_096, 1_438)],
)
def test_max_connections_follow_the_open_file_limit(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, files))

    assert haproxy_settings("any")["RAY_SERVE_HAPROXY_MAXCONN"] == str(connections)
