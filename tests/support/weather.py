"""What lies between a client and its server: a proxy on loopback that asks for credentials, fails, or loses answers."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import NamedTuple
from urllib.parse import urlsplit

#: `lose`: the server does the work, its answer is thrown away. `cut`: the server never hears of it. A number: this
#: status is the answer. `slow`: no answer for two seconds.
Trouble = str | int | None


class Request(NamedTuple):
    method: str
    path: str
    body: bytes

    @property
    def is_write(self) -> bool:
        return self.method != "GET" and "/search" not in self.path


class Weather:
    """`url`: for the client. `trouble`: asked for each request. `seen`: all that came through."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self.trouble: Callable[[Request], Trouble] = lambda request: None
        self.login: tuple[str, str] | None = None
        self.seen: list[Request] = []
        self._one = Lock()
        weather = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                weather._serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if self.login is not None:
            expected = "Basic " + base64.b64encode(":".join(self.login).encode()).decode()
            if request.headers.get("Authorization") != expected:
                self._answer(request, 401, b"You are not authenticated.\nSee the documentation.")
                return
        with self._one:
            self.seen.append(Request(request.command, request.path, body))
            trouble = self.trouble(self.seen[-1])
        if trouble == "slow":
            time.sleep(2)
        if isinstance(trouble, int):
            self._answer(request, trouble, b"<html>trouble</html>")
            return
        if trouble in ("cut", "slow"):
            request.close_connection = True
            return
        connection = HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        kept = {name: value for name, value in request.headers.items() if name not in ("Host", "Authorization")}
        connection.request(request.command, request.path, body, kept)
        answer = connection.getresponse()
        status, content, kind = answer.status, answer.read(), answer.headers.get("Content-Type", "text/plain")
        connection.close()
        if trouble == "lose":
            request.close_connection = True
            return
        self._answer(request, status, content, kind)

    def _answer(self, request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str = "text/plain") -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def clear(self) -> None:
        self.trouble, self.login = lambda request: None, None
        self.seen.clear()

    def each_write_once(self, trouble: Trouble) -> Callable[[Request], Trouble]:
        """`trouble` for each write when it comes for the first time."""
        return lambda request: trouble if request.is_write and self.seen.count(request) == 1 else None


@contextmanager
def weather(upstream: str) -> Iterator[Weather]:
    made = Weather(upstream)
    thread = Thread(target=made._server.serve_forever, daemon=True)
    thread.start()
    yield made
    made._server.shutdown()
    made._server.server_close()
