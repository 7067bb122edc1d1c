"""Pictures by URL, from the hosts that the operator lists and from nowhere else.

Who sends a URL chooses where this machine connects to. So: a host is one of the list by its name, all its addresses
are of the open internet, the connection goes to an address that was looked at (no name is resolved twice), and a
redirect is another URL, held to the same. What a sender is told of a host that fails is the same whatever failed:
the differences would draw a map of the inside network. The operator's log has them, by the entry of his list.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpcore2
import httpx2

from model.errors import ConfigError, ImageError
from model.images import ImageLimits

logger = logging.getLogger(__name__)

_REDIRECTS = 3
#: Pictures that are fetched at a time.
_AT_A_TIME = 16
#: Addresses of a host that are tried.
_ADDRESSES = 4
_PORTS = {"https": 443, "http": 80}
_MOVED = (301, 302, 303, 307, 308)
_HEADERS = [
    ("Accept", "image/jpeg, image/png, image/webp, video/*"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
    ("User-Agent", "agentps"),
]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: A name in ASCII, lower case, of two parts or more; no address: the last part of one begins with a digit in all forms.
_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

_OPEN_6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: Of `is_global`, and yet no host of pictures: Azure's own service, relays, tunnels, protocols' and books' addresses.
_NEVER_4 = [*map(ipaddress.IPv4Network, ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24"))]
_NEVER_6 = [*map(ipaddress.IPv6Network, ("2001::/23", "2002::/16", "3fff::/20"))]

#: As `socket.getaddrinfo`.
Resolve = Callable[..., Sequence[tuple[Any, ...]]]


def is_public(text: str) -> bool:
    """Whether an address is of the open internet; where an IPv6 address stands for an IPv4 one, whether that is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is None:
            usual = address.scope_id is None and address in _OPEN_6
            return usual and address.is_global and not any(address in net for net in _NEVER_6)
        address = inner
    return address.is_global and not address.is_multicast and not any(address in net for net in _NEVER_4)


@cache
def _trusted() -> ssl.SSLContext:
    """Reads all certificates that this machine trusts: some tens of milliseconds."""
    return httpx2.create_ssl_context()


@dataclass(frozen=True)
class Host:
    """An entry of the list. below: it stands for the names below `name`, not for `name`. local: see `Fetch`."""

    entry: str
    scheme: str
    name: str
    port: int
    below: bool
    local: bool

    @classmethod
    def of(cls, entry: str) -> Host:
        """Raises: ConfigError."""
        scheme, there, rest = entry.rpartition("://")
        scheme, below = scheme if there else "https", rest.startswith("*.")
        wrong = ConfigError(
            f"image host {entry!r:.300}: the name of a host is expected, as cdn.example.com, *.example.com or "
            "cdn.example.com:8443; or http://127.0.0.1:8080 for a server of this machine"
        )
        try:
            url = httpx2.URL(f"{scheme}://{rest.removeprefix('*.')}")
        except (httpx2.InvalidURL, ValueError):
            raise wrong from None
        name = url.raw_host.decode("ascii")
        local = scheme == "http" and not below and _is_local(name)
        plain = url.raw_path == b"/" and not url.userinfo and not url.fragment and not rest.endswith("/")
        if not plain or not (local or (scheme == "https" and _NAME.fullmatch(name))):
            raise wrong
        return cls(entry, scheme, name, url.port or _PORTS[scheme], below, local)

    def has(self, scheme: str, name: str, port: int) -> bool:
        named = name.endswith(f".{self.name}") if self.below else name == self.name
        return named and (scheme, port) == (self.scheme, self.port)

    def takes(self, address: str) -> bool:
        return ipaddress.ip_address(address).is_loopback if self.local else is_public(address)


def _is_local(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Fetch:
    """The bytes of a picture at a URL. Threads may call it at the same time.

    No proxy, cookie, credential or referrer is used or sent, and nothing is kept of an answer but the bytes of a
    picture; whether they are one, says `model.images.decode`.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        seconds: float = 10,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        """
        Args:
            hosts: `cdn.example.com`; `*.example.com`, the names below it and not itself; with a port where it is not
                443. Only a server of this machine is read over http, as `http://127.0.0.1:8080`.
            seconds: for one picture, all its redirects together.
            tls: None: the certificates that this machine trusts.

        Raises:
            ConfigError: an entry is no such host.
        """
        self._hosts = [Host.of(entry) for entry in hosts]
        self._seconds, self._resolve = seconds, resolve
        self._tls = tls or _trusted()
        self._many = ThreadPoolExecutor(_AT_A_TIME, "fetch")
        self._names = ThreadPoolExecutor(_AT_A_TIME, "names")  # the system's resolver takes no deadline

    def __call__(self, url: str, limits: ImageLimits, end: float | None = None) -> bytes:
        """
        Args:
            end: by `time.monotonic`, where it is not `seconds` from now.

        Raises:
            ImageError: why there is no picture; it says nothing of the network.
        """
        end, moved = end or time.monotonic() + self._seconds, ""
        for _ in range(_REDIRECTS + 1):
            try:
                target, host = self._allowed(url)
                found = self._get(target, host, limits, end)
            except ImageError as error:
                raise ImageError(f"{moved}{error}") from None
            if isinstance(found, bytes):
                return found
            url, moved = found, "it is elsewhere now: "
        raise ImageError(f"more than {_REDIRECTS} redirects")

    async def all(
        self, sources: Mapping[str, ImageLimits], hold: Callable[[int], None]
    ) -> dict[str, bytes | ImageError]:
        """The pictures of those sources that are URLs, or why there is none: some at a time, all in the `seconds` of
        one.

        Args:
            sources: with the limits of each.
            hold: gets the bytes of each; where it raises, no more are fetched.
        """
        loop, end = asyncio.get_running_loop(), time.monotonic() + self._seconds
        found: dict[str, bytes | ImageError] = {}

        async def one(url: str) -> None:
            try:
                data = await loop.run_in_executor(self._many, self, url, sources[url], end)
            except ImageError as error:
                found[url] = error
            else:
                hold(len(data))
                found[url] = data

        tasks = [asyncio.ensure_future(one(url)) for url in filter(_URL.match, sources)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return found

    def _allowed(self, text: str) -> tuple[httpx2.URL, Host]:
        """The one reading of the URL: what is looked at here is what is connected to."""
        try:
            url = httpx2.URL(text)
            name, port = url.raw_host.decode("ascii"), url.port or _PORTS.get(url.scheme, 0)
        except (httpx2.InvalidURL, ValueError, TypeError):
            raise ImageError("no URL that can be read") from None
        if url.userinfo or "\\" in text:
            raise ImageError("no URL with a user name, a password or a backslash is read")
        for host in self._hosts:
            if host.has(url.scheme, name, port) and (host.local or _NAME.fullmatch(name)):
                return url, host
        if url.scheme != "https":
            raise ImageError("only https URLs are read")
        raise ImageError("no picture is fetched from this host and port: they are not listed (image_hosts)")

    def _get(self, url: httpx2.URL, host: Host, limits: ImageLimits, end: float) -> bytes | str:
        """The picture, or where it is now."""
        name, port = url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=port, target=url.raw_path)
        try:
            backend = _Checked(self._addresses(host, name, port, end), end)
            connection = httpcore2.HTTPConnection(target.origin, self._tls, network_backend=backend)
            with connection, connection.stream("GET", target, headers=_HEADERS) as answer:
                return _read(answer, url, limits)
        except (TimeoutError, httpcore2.TimeoutException):
            why, reason = "no answer in time", f"not fetched within {self._seconds:g} seconds"
        except (OSError, UnicodeError, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            why, reason = type(error.__cause__ or error).__name__, "cannot be fetched from its host"
        logger.warning("pictures of %s: %s", host.entry, why)
        raise ImageError(reason)

    def _addresses(self, host: Host, name: str, port: int, end: float) -> list[str]:
        """Raises: OSError: there are none; or it is NotPublicError."""
        asked = self._names.submit(self._resolve, name, port, type=socket.SOCK_STREAM)
        try:
            found = list(dict.fromkeys(str(entry[4][0]) for entry in asked.result(_left(end))))
        finally:
            asked.cancel()
        if not found or not all(map(host.takes, found)):
            raise NotPublicError
        return found[:_ADDRESSES]


class NotPublicError(OSError):
    """A host has an address that is not connected to."""


def _read(answer: httpcore2.Response, url: httpx2.URL, limits: ImageLimits) -> bytes | str:
    headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
    if answer.status in _MOVED and b"location" in headers:
        try:
            return str(url.join(headers[b"location"]))
        except (httpx2.InvalidURL, ValueError):
            raise ImageError("redirected to no URL that can be read") from None
    if answer.status != 200:
        raise ImageError(f"its host answered with status {answer.status}")
    if headers.get(b"content-encoding", "identity").strip().lower() != "identity":
        raise ImageError("its host sent it compressed, which was not asked for")
    too_large = ImageError(f"more than {limits.max_bytes:,} bytes, which is the most that is read")
    length = headers.get(b"content-length", "")
    if length.isdigit() and int(length[:20]) > limits.max_bytes:
        raise too_large
    chunks, size = [], 0
    for chunk in answer.iter_stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > limits.max_bytes:
            raise too_large
    return b"".join(chunks)


# --- the network, by httpcore's own interface -----------------------------------------------------------------


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout
    return left


class _Checked(httpcore2.NetworkBackend):
    """Connects to the addresses that were looked at, whatever name it is given."""

    def __init__(self, addresses: Sequence[str], end: float) -> None:
        self._addresses, self._end = addresses, end

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        failed: Exception = httpcore2.ConnectError()
        for number, address in enumerate(self._addresses):
            try:  # of several the first may be one that swallows what it is sent
                wait = _left(self._end) / (len(self._addresses) - number)
                return _Timed(httpcore2.SyncBackend().connect_tcp(address, port, wait), self._end)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed


class _Timed(httpcore2.NetworkStream):
    """No wait goes beyond the end, however slowly bytes come."""

    def __init__(self, stream: httpcore2.NetworkStream, end: float) -> None:
        self._stream, self._end = stream, end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._end))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._end))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._end)), self._end)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()
