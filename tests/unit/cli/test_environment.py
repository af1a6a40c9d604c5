import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from serve_app.cli.environment import choose_environment, is_free, read_env_file

ROOT = Path(__file__).parents[3]
WITH_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def no_problem(_env: Mapping[str, str]) -> str | None:
    """Accept HAProxy in every environment."""
    return None


def test_env_files_have_lines_of_name_and_value() -> None:
    text = "# why\nA=1\n\n  B=x=y:z  \nEMPTY=\n"

    assert read_env_file(text) == {"A": "1", "B": "x=y:z", "EMPTY": ""}


@pytest.mark.parametrize("line", ["export A=1", "A", "A-B=1", "=1"])
def test_other_lines_in_env_files_are_errors(line: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=value"):
        read_env_file(f"GOOD=1\n{line}\n")


def test_throughput_env_enables_haproxy_and_throughput_mode() -> None:
    settings = read_env_file((ROOT / "throughput.env").read_text())

    assert settings.items() >= WITH_HAPROXY.items()
    assert all(value and " " not in value for value in settings.values())


def test_current_variables_override_the_file() -> None:
    env, reason = choose_environment(WITH_HAPROXY | {"A": "file"}, {"A": "user"}, no_problem)

    assert env == WITH_HAPROXY | {"A": "user"}
    assert reason is None


def test_without_haproxy_direct_ingress_is_off() -> None:
    requested = WITH_HAPROXY | {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1", "A": "1"}

    env, reason = choose_environment(requested, {}, lambda _env: "port in use")

    assert env == requested | {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    }
    assert reason == "port in use"


def test_users_can_turn_haproxy_off() -> None:
    def never(_env: Mapping[str, str]) -> str | None:
        raise AssertionError("HAProxy was checked")

    env, reason = choose_environment(WITH_HAPROXY, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, never)

    assert env["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "0"
    assert reason is None


def test_a_port_is_free_unless_a_process_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert not is_free(port)
        assert not is_free(port, "127.0.0.1")

    assert is_free(port)
