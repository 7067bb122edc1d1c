"""Hostile clients before the whole service: HAProxy, Ray Serve, the application with keys and pictures by URL."""

from __future__ import annotations

import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from model.settings import BackboneSettings
from scoring.keys import new_key
from tests.scoring.test_serve import NAME, running
from tests.support.pictures import ok, picture_host
from tests.support.service import post
from tests.support.tiny import write_images
from tests.support.versions import register_versions, registry_in

SECRET = "xyzzy"


def first_line(where: tuple[str, int], *parts: bytes, every: float = 0.0) -> bytes:
    """Of the answer; nothing where the connection ends without one."""
    with socket.create_connection(where, timeout=120) as client, suppress(ConnectionError):
        with suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
                time.sleep(every)
        return client.recv(1000).split(b"\r\n")[0]
    return b""


@pytest.mark.pipeline
def test_the_whole_service_holds_against_hostile_clients(
    empty_database: Path, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    config, keys = tmp_path / "run.yaml", tmp_path / "keys.yaml"
    key = new_key(keys, "newsroom")
    image = write_images(tmp_path, 1)[0].read_bytes()
    with registry_in(tmp_path), picture_host() as host:
        host.answers["/a.png"] = ok(image)
        register_versions(tmp_path, tiny_backbone, NAME, 1)
        config.write_text(
            f"service: {{keys: {keys}, image_hosts: ['{host.url}'], request_seconds: 2, host: 0.0.0.0}}\n"
        )
        with running(tmp_path, "--config", str(config)) as (process, url, said):
            where = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()
            typed = head + b"Content-Type: application/json\r\n"
            with httpx2.Client(base_url=url, timeout=120, headers={"Authorization": f"Bearer {key}"}) as client:
                # heads: slow, large, many, none
                slow = [socket.create_connection(where, timeout=120) for _ in range(100)]
                for each in slow:
                    each.sendall(head)
                sent = {"posts": [post("a", images=[f"{host.url}/a.png"])]}
                assert client.post("/score", json=sent).json()["records"][0]["error"] is None
                assert [b" 408 " in each.recv(1000) for each in slow] == [True] * 100
                for each in slow:
                    each.close()
                flood = first_line(where, head, *[b"a: b\r\n" * 10_000] * 100)
                assert flood == b"" or b" 4" in flood
                long = first_line(where, head + b"a: " + b"b" * 1_000_000)
                assert long == b"" or b" 4" in long
                assert b" 400 " in first_line(where, b"\x16\x03\x01\x02\r\n\r\n")
                # bodies: slow, large
                drip = [b" "] * 100
                assert b" 408 " in first_line(where, typed + b"Content-Length: 1000\r\n\r\n", *drip, every=0.05)
                huge = first_line(where, typed + b"Content-Length: 100000000\r\n\r\n", *[bytes(1_000_000)] * 100)
                assert huge == b"" or b" 413 " in huge
                chunk = b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000))
                huge = first_line(where, typed + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 100)
                assert huge == b"" or b" 413 " in huge
                # nobody's posts
                assert httpx2.post(f"{url}/score", json={"posts": [post(SECRET)]}, timeout=120).status_code == 401
                many = {"posts": [{}] * 1_000_000}
                assert client.post("/score", json=many).status_code == 413
                answer = client.post("/score", json={"posts": [post(SECRET, title=SECRET, images=[SECRET])]})
                assert answer.status_code == 422
                assert client.get("/ready").json()["queued_posts"] == 0
                assert process.poll() is None, said()
        logs = [path.read_bytes() for path in tmp_path.rglob("*.log*") if path.is_file()]
        assert logs
        assert not any(SECRET.encode() in log or key.encode() in log for log in logs)
