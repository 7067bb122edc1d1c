"""Who sends the URL of a picture reaches the listed hosts, on the open internet, and learns nothing of any other."""

from __future__ import annotations

import gzip
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore2
import pytest

from model.errors import ConfigError, ImageError
from model.images import ImageLimits
from scoring.fetch import Fetch, is_public
from tests.support.pictures import PictureHost, certificate, moved, ok, picture, picture_host

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=10_000_000)
NAME = "cdn.example.com"
PUBLIC = "93.184.215.14"
NOT_LISTED = "they are not listed"
NO_WAY = "cannot be fetched from its host"
NOT_HTTPS = "only https URLs are read"


def answers(*addresses: str) -> list[tuple[Any, ...]]:
    """As `socket.getaddrinfo` returns them."""
    return [
        (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 443))
        for each in addresses
    ]


class Names:
    """A resolver that knows what it is told, and remembers what it was asked; the last answer is given for ever."""

    def __init__(self, *turns: list[str]) -> None:
        self.turns, self.asked = list(turns), list[str]()

    def __call__(self, name: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(name)
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        if not turn:
            raise socket.gaierror(-2, "Name or service not known")
        return answers(*turn)


@pytest.fixture
def host() -> Iterator[PictureHost]:
    with picture_host() as made:
        made.answers["/a.png"] = ok(picture())
        yield made


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every connection of the process that is asked for by httpcore; none of them is made."""
    found: list[tuple[str, int]] = []

    def connect(self: object, host: str, port: int, *_: object, **__: object) -> None:
        found.append((host, port))
        raise httpcore2.ConnectError

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
    return found


def refused(fetch: Fetch, url: str) -> str:
    with pytest.raises(ImageError) as caught:
        fetch(url, LIMITS)
    return str(caught.value)


# --- which URLs


#: URL -> a part of the reason. Listed are cdn.example.com, *.images.example.org and cdn.example.com:8443.
URLS = {
    # another scheme, another place
    f"http://{NAME}/a": NOT_HTTPS,
    f"ftp://{NAME}/a": NOT_HTTPS,
    f"gopher://{NAME}/a": NOT_HTTPS,
    f"ws://{NAME}/a": NOT_HTTPS,
    "file:///etc/passwd": NOT_HTTPS,
    "file://cdn.example.com/etc/passwd": NOT_HTTPS,
    f"//{NAME}/a": NOT_HTTPS,
    "https:/a": NOT_LISTED,
    "https:///a": NOT_LISTED,
    "https://": NOT_LISTED,
    "https://example.com/a": NOT_LISTED,
    "https://evil.com/a": NOT_LISTED,
    f"https://{NAME}:444/a": NOT_LISTED,
    f"https://{NAME}:80/a": NOT_LISTED,
    f"https://{NAME}:22/a": NOT_LISTED,
    f"https://{NAME}:99999/a": NOT_LISTED,
    f"https://{NAME}:-1/a": NOT_LISTED,
    f"https://{NAME}:x/a": "no URL",
    # names that look like a listed one
    f"https://{NAME}.evil.com/a": NOT_LISTED,
    f"https://evil{NAME}/a": NOT_LISTED,
    f"https://evil.{NAME}/a": NOT_LISTED,
    f"https://{NAME}./a": NOT_LISTED,
    f"https://.{NAME}/a": NOT_LISTED,
    "https://images.example.org/a": NOT_LISTED,
    "https://evilimages.example.org/a": NOT_LISTED,
    "https://.images.example.org/a": NOT_LISTED,
    "https://a..images.example.org/a": NOT_LISTED,
    "https://-.images.example.org/a": NOT_LISTED,
    "https://a%2eb.images.example.org/a": NOT_LISTED,
    "https://a%00.images.example.org/a": NOT_LISTED,
    "https://evil.com%2f.images.example.org/a": NOT_LISTED,
    "https://evil.com%23.images.example.org/a": NOT_LISTED,
    "https://*.images.example.org/a": NOT_LISTED,
    f"https://{'a' * 64}.images.example.org/a": NOT_LISTED,
    f"https://{'a.' * 130}images.example.org/a": NOT_LISTED,
    "https://cdn%2eexample%2ecom/a": NOT_LISTED,
    "https://cdn.exаmple.com/a": NOT_LISTED,  # a Cyrillic letter
    "https://xn--cdn.example.com/a": NOT_LISTED,
    "https://cdn.example.com\u200b/a": "no URL",
    # who reads a URL in another way sees another host
    f"https://{NAME}@evil.com/a": "user name",
    f"https://evil.com@{NAME}/a": "user name",
    f"https://user:password@{NAME}/a": "user name",
    f"https://{NAME}:443@127.0.0.1/a": "user name",
    f"https://evil.com\\@{NAME}/a": "backslash",
    f"https://{NAME}\\@evil.com/a": "backslash",
    f"https:\\\\{NAME}/a": "backslash",
    f"https://evil.com#@{NAME}/a": NOT_LISTED,
    f"https://evil.com?@{NAME}/a": NOT_LISTED,
    f"https://evil.com/{NAME}": NOT_LISTED,
    f"https://{NAME} evil.com/a": NOT_LISTED,
    f"https://{NAME}\tevil.com/a": "no URL",
    f"https://{NAME}\r\nHost: evil.com/a": "no URL",
    f"https://{NAME}\0.evil.com/a": "no URL",
    f"https://{NAME}/a\r\nX: y": "no URL",
    "https://cdn.example.com/\ud800": "no URL",
    f"https://{NAME}/{'a' * 70_000}": "no URL",
    # addresses, in all the forms that some resolver takes
    "https://127.0.0.1/a": NOT_LISTED,
    "https://127.1/a": NOT_LISTED,
    "https://0/a": NOT_LISTED,
    "https://2130706433/a": NOT_LISTED,
    "https://0x7f000001/a": NOT_LISTED,
    "https://0x7f.0.0.1/a": NOT_LISTED,
    "https://0177.0.0.1/a": "",
    "https://017700000001/a": NOT_LISTED,
    "https://①②⑦.0.0.1/a": "",
    "https://127。0。0。1/a": "",
    "https://169.254.169.254/latest/meta-data/": NOT_LISTED,
    "https://2852039166/": NOT_LISTED,
    "https://[::1]/a": NOT_LISTED,
    "https://[::]/a": NOT_LISTED,
    "https://[::ffff:127.0.0.1]/a": NOT_LISTED,
    "https://[::ffff:7f00:1]/a": NOT_LISTED,
    "https://[::127.0.0.1]/a": NOT_LISTED,
    "https://[64:ff9b::7f00:1]/a": NOT_LISTED,
    "https://[2002:7f00:1::]/a": NOT_LISTED,
    "https://[fe80::1%25eth0]/a": "",
    "https://[fe80::1%eth0]/a": "",
    "https://[fd00:ec2::254]/a": NOT_LISTED,
    "https://[::1/a": "",
    "https://localhost/a": NOT_LISTED,
    "https://metadata.google.internal/a": NOT_LISTED,
    "https://127.0.0.1.nip.io/a": NOT_LISTED,
    "": NOT_HTTPS,
    "a.png": NOT_HTTPS,
    "/etc/passwd": NOT_HTTPS,
}


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_a_url_of_no_listed_host_is_refused_before_a_name_is_asked(url: str, dialled: list[Any]) -> None:
    names = Names([PUBLIC])
    fetch = Fetch([NAME, "*.images.example.org", f"{NAME}:8443"], resolve=names)
    assert URLS[url] in refused(fetch, url)
    assert (names.asked, dialled) == ([], [])


@pytest.mark.parametrize(
    ("url", "name", "port"),
    [
        (f"https://{NAME}/a", NAME, 443),
        (f"https://{NAME}:443/a", NAME, 443),
        (f"https://{NAME}:8443/a", NAME, 8443),
        (f"HTTPS://{NAME.upper()}/a", NAME, 443),
        ("https://cdn。example。com/a", NAME, 443),
        ("https://a.b.images.example.org/a", "a.b.images.example.org", 443),
        ("https://bücher.images.example.org/a", "xn--bcher-kva.images.example.org", 443),
        ("https://xn--bcher-kva.images.example.org/a", "xn--bcher-kva.images.example.org", 443),
        (f"https://{NAME}/a?to=http://127.0.0.1/#x", NAME, 443),
    ],
)
def test_what_is_connected_to_is_the_address_of_the_name_that_was_looked_at(
    url: str, name: str, port: int, dialled: list[Any]
) -> None:
    names = Names([PUBLIC])
    fetch = Fetch([NAME, "*.images.example.org", f"{NAME}:8443"], resolve=names)
    assert refused(fetch, url) == NO_WAY
    assert (names.asked, dialled) == ([name], [(PUBLIC, port)])


@pytest.mark.parametrize(
    "entry",
    ["", "*", "*.com/x", "https://", "http://cdn.example.com", "ftp://cdn.example.com", "cdn", "localhost", "10.0.0.1",
     "93.184.215.14", "[::1]", "http://10.0.0.1:80", "http://*.localhost", "cdn.example.com/a", "cdn.example.com/",
     "me@cdn.example.com", "cdn.*.com", "*.*.example.com", "cdn.example.com:x", "cdn example.com", "cdn.example.com.",
     "*.127.0.0.1", "\0"],
)  # fmt: skip
def test_an_entry_that_is_no_host_is_one_message(entry: str) -> None:
    with pytest.raises(ConfigError, match="the name of a host is expected"):
        Fetch([entry])


# --- which addresses


#: Of this machine, of an inside network, of a cloud's own services, of protocols; and what stands for one of them.
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
    *("168.63.129.16", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1"),
    *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    *("2001:db8::1", "2001:10::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "fc00::1", "fd00:ec2::254"),
    *("fd20:ce::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "4000::1", "2606:4700::1%eth0"),
    *("nonsense", "1", "0x7f.1", "0177.0.0.1", ""),
]
OPEN = [
    *("8.8.8.8", "93.184.215.14", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::6810:85e5"),
    *("2a00:1450:4001:81b::200e", "::ffff:8.8.8.8", "64:ff9b::808:808"),
]


def test_only_addresses_of_the_open_internet_are_public() -> None:
    assert [address for address in NOT_PUBLIC if is_public(address)] == []
    assert [address for address in OPEN if not is_public(address)] == []


@pytest.mark.parametrize("bad", NOT_PUBLIC)
def test_one_address_inside_is_enough_to_refuse_a_host(bad: str, dialled: list[Any]) -> None:
    for found in ([bad], [PUBLIC, bad], [bad, PUBLIC]):
        assert refused(Fetch([NAME], resolve=Names(found)), f"https://{NAME}/a") == NO_WAY
    assert dialled == []


def test_a_name_is_asked_once_and_another_answer_a_moment_later_changes_nothing(host: PictureHost) -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    fetch = Fetch([f"http://localhost:{host.port}"], resolve=names)
    assert fetch(f"http://localhost:{host.port}/a.png", LIMITS) == picture()
    assert names.asked == ["localhost"]
    assert refused(fetch, f"http://localhost:{host.port}/a.png") == NO_WAY  # the second answer is looked at, too


def test_an_address_that_does_not_answer_is_not_the_only_one(dialled: list[Any]) -> None:
    found = [PUBLIC, "8.8.8.8", "2606:4700::1", "1.1.1.1", "9.9.9.9"]
    assert refused(Fetch([NAME], resolve=Names(found)), f"https://{NAME}/a") == NO_WAY
    assert dialled == [(address, 443) for address in found[:4]]


def test_what_fails_inside_is_told_in_the_same_words_and_logged_by_the_entry_of_the_list(
    dialled: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    said = {
        refused(Fetch([f"*.{NAME}"], resolve=Names(found)), f"https://secret.{NAME}/secret")
        for found in ([], ["10.0.0.1"], [PUBLIC])
    }
    assert said == {NO_WAY}
    assert [record.getMessage() for record in caplog.records] == [
        f"pictures of *.{NAME}: {why}" for why in ("gaierror", "NotPublicError", "ConnectError")
    ]


# --- TLS


@pytest.fixture
def to_loopback(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Public address -> the port of loopback that stands for it."""
    ports: dict[str, int] = {}
    connect = httpcore2.SyncBackend.connect_tcp
    monkeypatch.setattr(
        httpcore2.SyncBackend,
        "connect_tcp",
        lambda self, host, port, *rest, **more: connect(self, "127.0.0.1", ports[host], *rest, **more),
    )
    return ports


def test_a_certificate_is_held_to_the_name_though_an_address_is_dialled(
    tmp_path: Path, to_loopback: dict[str, int]
) -> None:
    server, client = certificate(tmp_path, NAME, PUBLIC)
    with picture_host(server) as host:
        host.answers["/a.png?x=1"] = ok(picture())
        to_loopback[PUBLIC] = host.port
        fetch = Fetch([NAME, "other.example.com"], tls=client, resolve=Names([PUBLIC]))
        assert fetch(f"https://{NAME}/a.png?x=1#part", LIMITS) == picture()
        assert refused(fetch, "https://other.example.com/a.png?x=1") == NO_WAY
        assert refused(Fetch([NAME], resolve=Names([PUBLIC])), f"https://{NAME}/a.png?x=1") == NO_WAY  # not trusted
        assert len(host.heads) == 1
        assert host.heads[0].startswith(f"GET /a.png?x=1 HTTP/1.1\r\nHost: {NAME}\r\n")


# --- redirects


def local(host: PictureHost, *more: str, seconds: float = 10) -> Fetch:
    return Fetch([host.url, *more], seconds=seconds)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_three_redirects_are_followed_and_not_four(host: PictureHost, status: int) -> None:
    host.answers |= {f"/{n}": moved(f"/{n - 1}", status) for n in (2, 3, 4)} | {"/1": moved("a.png", status)}
    assert local(host)(f"{host.url}/3", LIMITS) == picture()
    assert refused(local(host), f"{host.url}/4") == "more than 3 redirects"
    host.answers["/round"] = moved("/round", status)
    assert refused(local(host), f"{host.url}/round") == "more than 3 redirects"


@pytest.mark.parametrize(
    "to",
    ["http://127.0.0.1:1/", "http://localhost/", "//127.0.0.1:1/a", "https://169.254.169.254/latest", "file:///etc/passwd",
     "https://evil.com/a", "https://user@cdn.example.com/", "ftp://127.0.0.1/", "https://[::1]/", "http://2130706433/",
     "data:image/png;base64,AAAA", "javascript:1", "https://cdn.example.com\\@evil.com/", "http://[", "http://a\tb/"],
)  # fmt: skip
def test_a_redirect_is_held_to_what_a_url_is(host: PictureHost, to: str) -> None:
    host.answers["/to"] = moved(to)
    reason = refused(local(host), f"{host.url}/to")
    assert reason.startswith(("it is elsewhere now: ", "redirected to no URL"))
    assert "127.0.0.1" not in reason
    assert len(host.heads) == 1


def test_the_host_of_a_redirect_is_looked_at_again(host: PictureHost) -> None:
    host.answers["/to"] = moved(f"https://{NAME}/a")
    found = iter([answers("127.0.0.1"), answers("169.254.169.254")])
    fetch = Fetch([host.url, NAME], resolve=lambda *_, **__: next(found))
    assert refused(fetch, f"{host.url}/to") == f"it is elsewhere now: {NO_WAY}"


def test_nothing_of_one_request_goes_with_the_next(host: PictureHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    host.answers["/to"] = ok(b"", "Location: /a.png", "Set-Cookie: a=b; Path=/", status="302 Found")
    assert local(host)(f"{host.url}/to", LIMITS) == picture()
    names = {line.partition(":")[0].lower() for head in host.heads for line in head.split("\r\n")[1:] if line}
    assert len(host.heads) == 2
    assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert all("Accept-Encoding: identity\r\n" in head for head in host.heads)


# --- what is sent back


def test_an_answer_that_is_no_picture_of_the_size_is_a_reason(host: PictureHost) -> None:
    big = b"\x89PNG" + bytes(LIMITS.max_bytes)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(big), big)
    host.answers = {
        "/big": ok(big),
        "/chunked": chunked,
        "/endless": b"HTTP/1.1 200 OK\r\n\r\n" + big,
        "/lies": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "/bomb": ok(gzip.compress(big), "Content-Encoding: gzip"),
        "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123",
        "/no-http": b"SSH-2.0-OpenSSH_9.2\r\n",
        "/nothing": b"",
        "/headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000 + b"\r\n",
        "/part": ok(b"1", status="206 Partial Content"),
        "/secret": ok(b"secret", "X: secret", status="500 secret"),
        "/no-location": ok(b"", status="302 Found"),
        "/switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "/length": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "/two": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1",
    }
    large = "more than 100,000 bytes, which is the most that is read"
    expected = {
        "/big": large,
        "/chunked": large,
        "/endless": large,
        "/lies": large,
        "/bomb": "its host sent it compressed, which was not asked for",
        "/short": NO_WAY,
        "/no-http": NO_WAY,
        "/nothing": NO_WAY,
        "/headers": NO_WAY,
        "/part": "its host answered with status 206",
        "/secret": "its host answered with status 500",
        "/no-location": "its host answered with status 302",
        "/switch": NO_WAY,
        "/length": NO_WAY,
        "/two": NO_WAY,
        "/none": "its host answered with status 404",
    }
    assert {path: refused(local(host), host.url + path) for path in expected} == expected


def test_the_body_stops_at_the_limit(host: PictureHost) -> None:
    sent = []

    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent.append(connection.send(bytes(65_536)))

    host.answers["/endless"] = endless
    assert "more than 100,000 bytes" in refused(local(host), f"{host.url}/endless")
    assert sum(sent) < 20_000_000  # what the two sockets hold


@pytest.mark.parametrize("before", ["head", "body", "chunk", "nothing", "informed"])
def test_a_server_that_drips_is_given_up_at_the_end_of_the_time(host: PictureHost, before: str) -> None:
    def drip(connection: socket.socket) -> None:
        start = {
            "head": b"HTTP/1.1 200 OK\r\na: ",
            "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "nothing": b"",
            "informed": b"",
        }[before]
        connection.sendall(start)
        drop = {"chunk": b"1\r\na\r\n", "nothing": b"", "informed": b"HTTP/1.1 103 Early Hints\r\n\r\n"}.get(
            before, b"a"
        )
        while before != "nothing":
            connection.sendall(drop)
            time.sleep(0.02)
        connection.recv(1)  # until the other side goes

    host.answers["/drip"] = drip
    assert refused(local(host, seconds=0.5), f"{host.url}/drip") == "not fetched within 0.5 seconds"


def test_a_resolver_that_hangs_is_given_up_at_the_end_of_the_time() -> None:
    def hang(*_: object, **__: object) -> list[Any]:
        time.sleep(1)
        return answers(PUBLIC)

    assert refused(Fetch([NAME], seconds=0.1, resolve=hang), f"https://{NAME}/a") == "not fetched within 0.1 seconds"


def test_no_word_of_a_url_goes_into_a_log(host: PictureHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    host.answers["/secret-2"] = moved("/secret-3")
    host.answers["/a.png?secret"] = ok(picture())
    local(host)(f"{host.url}/a.png?secret", LIMITS)
    refused(local(host), f"{host.url}/secret-1")
    refused(local(host), f"{host.url}/secret-2")
    assert "secret" not in caplog.text
