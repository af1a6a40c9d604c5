import resource
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from serve_app.cli.environment import (
    choose_environment,
    haproxy_binary,
    haproxy_problem,
    haproxy_settings,
    is_free,
    read_env_file,
)

ROOT = Path(__file__).parents[3]
WITH_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def no_problem(_env: Mapping[str, str]) -> str | None:
    """Finds nothing against HAProxy."""
    return None


def no_binary(_env: Mapping[str, str]) -> str | None:
    """Finds no HAProxy."""
    return None


def some_binary(_env: Mapping[str, str]) -> str | None:
    """Finds an HAProxy."""
    return "/usr/sbin/haproxy"


def test_an_environment_file_is_lines_of_name_and_value() -> None:
    """Comments and empty lines are left out; a value may hold anything, also an equals sign."""
    text = "# why\nA=1\n\n  B=x=y:z  \nEMPTY=\n"

    assert read_env_file(text) == {"A": "1", "B": "x=y:z", "EMPTY": ""}


@pytest.mark.parametrize("line", ["export A=1", "A", "A-B=1", "=1"])
def test_a_line_of_another_kind_is_refused(line: str) -> None:
    """What other readers of such files would not understand is an error here too."""
    with pytest.raises(ValueError, match="is not NAME=value"):
        read_env_file(f"GOOD=1\n{line}\n")


def test_the_shipped_file_asks_for_throughput() -> None:
    """The two flags that matter most are in it, and every value is a plain word."""
    settings = read_env_file((ROOT / "throughput.env").read_text())

    assert settings.items() >= WITH_HAPROXY.items()
    assert all(value and " " not in value for value in settings.values())


def test_a_variable_that_the_user_set_wins() -> None:
    """The file gives defaults."""
    env, why = choose_environment(WITH_HAPROXY | {"A": "file"}, {"A": "user"}, no_problem)

    assert env == WITH_HAPROXY | {"A": "user"}
    assert why is None


def test_without_haproxy_direct_ingress_goes_too() -> None:
    """All else stays as it was asked for."""
    asked = WITH_HAPROXY | {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1", "A": "1"}

    env, why = choose_environment(asked, {}, lambda _env: "no room")

    assert env == asked | {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    }
    assert why == "no room"


def test_a_user_who_wants_no_haproxy_gets_none() -> None:
    """Throughput mode alone would turn direct ingress on."""

    def never(_env: Mapping[str, str]) -> str | None:
        raise AssertionError("asked about HAProxy")

    env, why = choose_environment(WITH_HAPROXY, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, never)

    assert env["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "0"
    assert why is None


def test_a_machine_without_haproxy_is_a_problem() -> None:
    """As on macOS."""
    assert haproxy_problem({}, binary=no_binary, is_free=lambda _port: True) is not None


def test_free_ports_and_a_binary_are_no_problem() -> None:
    """As on most machines."""
    assert haproxy_problem({}, binary=some_binary, is_free=lambda _port: True) is None


@pytest.mark.parametrize("taken", [8404, 9101, 8500])
def test_a_taken_port_of_haproxy_is_a_problem(taken: int) -> None:
    """Each of the ports that it binds beside Serve's own; the message names it."""
    problem = haproxy_problem({}, binary=some_binary, is_free=lambda port: port != taken)

    assert problem is not None
    assert str(taken) in problem


def test_a_port_of_haproxy_can_be_moved() -> None:
    """Ray's own variable says where it is then."""
    env = {"RAY_SERVE_HAPROXY_STATS_PORT": "18404"}

    assert haproxy_problem(env, binary=some_binary, is_free=lambda port: port != 8404) is None
    assert haproxy_problem(env, binary=some_binary, is_free=lambda port: port != 18404) is not None


@pytest.mark.parametrize(("exit_code", "usable"), [(0, True), (1, False)])
def test_a_binary_counts_only_if_it_runs(
    tmp_path: Path,
    exit_code: int,
    usable: bool,  # noqa: FBT001
) -> None:
    """One that was built for another kind of machine is there and of no use."""
    binary = tmp_path / "haproxy"
    binary.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    binary.chmod(0o755)

    found = haproxy_binary({"RAY_SERVE_HAPROXY_BINARY_PATH": str(binary)})

    assert found == (str(binary) if usable else None)


def test_a_binary_that_is_named_and_absent_is_not_replaced(tmp_path: Path) -> None:
    """Ray Serve would not start another one either."""
    assert haproxy_binary({"RAY_SERVE_HAPROXY_BINARY_PATH": str(tmp_path / "none")}) is None


def test_haproxys_files_lie_in_one_folder(tmp_path: Path) -> None:
    """None is left in the folder that all users of a machine share."""
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
def test_haproxy_takes_as_many_connections_as_there_are_files_for(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more it would not start."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, files))

    assert haproxy_settings("any")["RAY_SERVE_HAPROXY_MAXCONN"] == str(connections)


def test_a_port_is_free_unless_somebody_listens() -> None:
    """On whichever address they do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert not is_free(port)
        assert not is_free(port, "127.0.0.1")

    assert is_free(port)
