import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from serve_app.cli.environment import choose_environment, is_free, read_env_file

ROOT = Path(__file__).parents[3]
WITH_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def no_problem(_env: Mapping[str, str]) -> str | None:
    """Finds nothing against HAProxy."""
    return None


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


def test_a_port_is_free_unless_somebody_listens() -> None:
    """On whichever address they do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert not is_free(port)
        assert not is_free(port, "127.0.0.1")

    assert is_free(port)
