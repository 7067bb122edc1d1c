"""The part of S3's protocol that a broker keeps its log with: objects with conditional writes, and lists of them.

Held by the test's process, so that it outlives a broker that is killed. No signature is checked.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    lock: threading.Lock

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.lock:
            known = self.objects.get(self._key())
            if self.headers.get("If-None-Match") == "*" and known is not None:
                return self._answer(412)
            if (wanted := self.headers.get("If-Match")) is not None and (known is None or wanted != _tag(known)):
                return self._answer(412)
            self.objects[self._key()] = content
        return self._answer(200, ETag=_tag(content))

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            return self._list(query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        with self.lock:
            content = self.objects.get(self._key())
        if content is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if self.headers.get("If-None-Match") == _tag(content):
            return self._answer(304, ETag=_tag(content))
        headers = {"ETag": _tag(content), "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if (wanted := self.headers.get("Range")) is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{end}/{len(content)}"
            return self._answer(206, content[int(first) : end + 1], **headers)
        return self._answer(200, content, **headers)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        with self.lock:
            self.objects.pop(self._key(), None)
        self._answer(204)

    def _list(self, prefix: str, delimiter: str) -> None:
        with self.lock:
            found = {key: content for key, content in self.objects.items() if key.startswith(prefix)}
        folders: set[str] = set()
        parts = []
        for key, content in sorted(found.items()):
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folders.add(prefix + head + delimiter)
                continue
            parts.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>{_tag(content)}</ETag>"
                f"<LastModified>{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            )
        parts += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        self._answer(
            200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(parts)}</ListBucketResult>".encode()
        )


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


@contextmanager
def s3() -> Iterator[dict[str, str]]:
    """The variables by which a client finds it."""
    handler = type("Handler", (_Handler,), {"objects": {}, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "AWS_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
            "AWS_CONDITIONAL_PUT": "etag",
        }  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
