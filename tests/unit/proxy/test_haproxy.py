"""Tests of the patched HAProxy config. Some run HAProxy's own check of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.proxy.environment import haproxy_binary
from serve_app.proxy.haproxy import patch_config, write_answers

# The config that Ray Serve writes, shortened.
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
    haproxy_binary({}) is None, reason="no HAProxy binary runs on this machine"
)


@needs_haproxy
@pytest.mark.parametrize("config", [STARTING, RUNNING])
def test_haproxy_accepts_the_patched_config(tmp_path: Path, config: str) -> None:
    write_answers(tmp_path)
    (tmp_path / "haproxy.cfg").write_text(patch_config(config, tmp_path))

    done = subprocess.run(
        [haproxy_binary({}) or "", "-c", "-f", tmp_path / "haproxy.cfg"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_responses_have_the_configured_error_format(tmp_path: Path) -> None:
    write_answers(tmp_path, error_format="openai")

    assert set(json.loads((tmp_path / "503.json").read_bytes())) == {"error"}
    assert json.loads((tmp_path / "503.http").read_bytes().partition(b"\r\n\r\n")[2])["error"]

    write_answers(tmp_path, error_format="auto")

    assert "error_type" in json.loads((tmp_path / "503.json").read_bytes())


@pytest.mark.parametrize(("config", "status"), [(STARTING, 503), (RUNNING, 404)])
def test_unknown_paths_are_404_once_an_application_runs(
    tmp_path: Path, config: str, status: int
) -> None:
    write_answers(tmp_path)

    patched = patch_config(config, tmp_path)

    (line,) = (line for line in patched.splitlines() if "http-request return" in line)
    assert f"status {status} content-type application/json" in line
    assert ("hdr retry-after 1" in line) == (status == 503)
    assert json.loads((tmp_path / f"{status}.json").read_text())["error_type"]
    assert "text/plain" not in patched


def test_a_dead_replica_is_503_with_retry_after(tmp_path: Path) -> None:
    write_answers(tmp_path)

    head, _, body = (tmp_path / "502.http").read_bytes().partition(b"\r\n\r\n")

    lines = head.decode().lower().splitlines()
    assert lines[0] == "http/1.1 503 model is unavailable"
    assert {"content-type: application/json", "retry-after: 1"} <= set(lines)
    assert f"content-length: {len(body)}" in lines
    assert json.loads(body)["error"] == "Model is unavailable"


def test_the_rest_of_the_config_is_unchanged(tmp_path: Path) -> None:
    patched = patch_config(RUNNING, tmp_path).splitlines()

    replaced = ("errorfile", "retry-on", "http-request return", "bind :", "bind *")
    kept = [n for n in RUNNING.splitlines() if not n.strip().startswith(replaced)]
    assert [line for line in patched if line in kept] == kept


def test_stats_pages_listen_on_localhost_by_default(tmp_path: Path) -> None:
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
def test_the_command_patches_the_config_and_execs_haproxy(tmp_path: Path) -> None:
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
