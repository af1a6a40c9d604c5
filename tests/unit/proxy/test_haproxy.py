"""The config that HAProxy gets: Ray Serve's, with answers of ours. HAProxy itself says whether it is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.proxy.environment import haproxy_binary
from serve_app.proxy.haproxy import patch_config, write_answers

# As Ray Serve writes it, less what is not touched.
STARTING = """global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    retry-on conn-failure
    errorfile 502 /no/such/500.http
    errorfile 503 /no/such/500.http
    errorfile 504 /no/such/500.http
frontend prometheus
    bind :19101
    mode http
    no log
frontend http_frontend
    bind 127.0.0.1:18000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
"""
RUNNING = f"""{STARTING}backend http-embeddings
    http-reuse always
    server replica 127.0.0.1:30000 check
listen stats
  bind *:18404
  stats enable
"""
needs_haproxy = pytest.mark.skipif(
    haproxy_binary({}) is None, reason="Ray ships no HAProxy for this machine"
)


@needs_haproxy
@pytest.mark.parametrize("config", [STARTING, RUNNING])
def test_haproxy_takes_the_completed_config(tmp_path: Path, config: str) -> None:
    """With every file that it names."""
    write_answers(tmp_path)
    (tmp_path / "haproxy.cfg").write_text(patch_config(config, tmp_path))

    done = subprocess.run(
        [haproxy_binary({}) or "", "-c", "-f", tmp_path / "haproxy.cfg"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_answers_are_written_in_the_shape_that_is_asked_for(tmp_path: Path) -> None:
    """OpenAI's where the operator wants it for all; the header that `auto` goes by is not looked at here."""
    write_answers(tmp_path, error_format="openai")

    assert set(json.loads((tmp_path / "503.json").read_bytes())) == {"error"}
    assert json.loads((tmp_path / "503.http").read_bytes().partition(b"\r\n\r\n")[2])["error"]

    write_answers(tmp_path, error_format="auto")

    assert "error_type" in json.loads((tmp_path / "503.json").read_bytes())


@pytest.mark.parametrize(("config", "status"), [(STARTING, 503), (RUNNING, 404)])
def test_a_path_that_nobody_has_is_404_only_where_there_is_an_application(
    tmp_path: Path, config: str, status: int
) -> None:
    """Before that it may still come."""
    write_answers(tmp_path)

    completed = patch_config(config, tmp_path)

    (line,) = (line for line in completed.splitlines() if "http-request return" in line)
    assert f"status {status} content-type application/json" in line
    assert ("hdr retry-after 1" in line) == (status == 503)
    assert json.loads((tmp_path / f"{status}.json").read_text())["error_type"]
    assert "text/plain" not in completed


def test_a_replica_that_is_gone_is_503_with_the_time_to_wait(tmp_path: Path) -> None:
    """A whole HTTP message, as long as it says."""
    write_answers(tmp_path)

    head, _, body = (tmp_path / "502.http").read_bytes().partition(b"\r\n\r\n")

    lines = head.decode().lower().splitlines()
    assert lines[0] == "http/1.1 503 model is unavailable"
    assert {"content-type: application/json", "retry-after: 1"} <= set(lines)
    assert f"content-length: {len(body)}" in lines
    assert json.loads(body)["error"] == "Model is unavailable"


def test_what_ray_has_written_is_kept(tmp_path: Path) -> None:
    """All lines but those that are replaced."""
    completed = patch_config(RUNNING, tmp_path).splitlines()

    replaced = ("errorfile", "retry-on", "http-request return", "bind :", "bind *")
    kept = [n for n in RUNNING.splitlines() if not n.strip().startswith(replaced)]
    assert [line for line in completed if line in kept] == kept


def test_haproxy_s_own_pages_are_for_this_machine(tmp_path: Path) -> None:
    """Unless the operator names another address; the server's own port stays as it is."""
    binds = {
        inside: [
            line.strip()
            for line in patch_config(RUNNING, tmp_path, inside=inside).splitlines()
            if "bind" in line
        ]
        for inside in ("127.0.0.1", "10.0.0.5")
    }

    assert binds["127.0.0.1"] == [
        "bind 127.0.0.1:19101",
        "bind 127.0.0.1:18000",
        "bind 127.0.0.1:18404",
    ]
    assert binds["10.0.0.5"] == [
        "bind 10.0.0.5:19101",
        "bind 127.0.0.1:18000",
        "bind 10.0.0.5:18404",
    ]


@needs_haproxy
def test_the_command_completes_the_config_and_becomes_haproxy(tmp_path: Path) -> None:
    """With the arguments that Ray Serve gives."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(STARTING)

    done = subprocess.run(
        [sys.executable, "-m", "serve_app.proxy.haproxy", "-c", "-f", config],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f"errorfile 503 {tmp_path}/503.http" in config.read_text()
