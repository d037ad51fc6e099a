"""URLs: what is refused before a byte is sent; a server is played by a pair of connected sockets."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from orchestrator.errors import InputError, LoadError, TooLargeError
from orchestrator.knowledge.sources.fetch import Fetcher, is_public, is_url
from orchestrator.knowledge.sources.kinds import suffix_of

PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>hello"
PUBLIC = "93.184.215.14"


def moved(to: str, status: int = 302) -> bytes:
    return b"HTTP/1.1 %d Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, to.encode())


@dataclass
class World:
    """Names with the addresses that they have one after the other, and what a server says one time after the other."""

    names: dict[str, list[str]] = field(default_factory=lambda: {"a.test": [PUBLIC]})
    replies: list[bytes] = field(default_factory=lambda: [PAGE])
    dialled: list[tuple[str, int]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> Sequence[str]:
        if host not in self.names:
            return [host]  # what is no name here is an address
        answers = self.names[host]
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    def dial(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.dialled.append(address)
        ours, theirs = socket.socketpair()
        reply = self.replies.pop(0)

        def serve() -> None:
            with theirs:
                self.requests.append(theirs.recv(65_536))
                try:
                    theirs.sendall(reply)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        return ours

    def fetcher(self, max_bytes: int = 10_000, **options: float) -> Fetcher:
        return Fetcher(max_bytes, resolve=self.resolve, dial=self.dial, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
        "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1",
        "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1",
        "ff02::1", "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:7f00:1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_on_the_public_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", PUBLIC, "172.32.0.1", "100.128.0.1", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2a00:1450::1"],
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_no_private_address_of_the_standard_library_is_public() -> None:
    """The two lists were made apart from each other."""
    for first in range(256):
        for second in range(0, 256, 5):
            address = ipaddress.IPv4Address(f"{first}.{second}.9.9")
            assert is_public(address) <= (address.is_global and not address.is_multicast)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.test/x", "file:///etc/passwd", "gopher://a.test", "//a.test/x", "http:///x", "http://", "https://?x",
        "http://user@a.test/", "http://user:secret@a.test/", "http://a.test:22/", "http://a.test:0x50/",
        "http://a.test:99999/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://017700000001/",
        "http://127.1/", "http://0177.0.0.1/", "http://1.2.3.4.5/", "http://127.0.0.1./", "http://127.0.0.1/",
        "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[fe80::1%25eth0]/", "http://[::]/", "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data/", "http://a.test\\@127.0.0.1/", "http://a.test/ x", "http://a.test/\r\nX: y",
        "http://a.test/\x00", "http://" + "a" * 3_000, "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://[::1",
    ],
)  # fmt: skip
def test_urls_that_are_refused_before_anything_is_connected(url: str) -> None:
    world = World()
    with pytest.raises(InputError):
        world.fetcher()(url)
    assert world.dialled == []


def test_a_page() -> None:
    world = World()
    found = world.fetcher()("HTTP://a.test/leave ü.html?q=1#part".replace(" ", "%20"))

    assert (found.url, found.suffix, found.charset, found.data) == (
        "http://a.test/leave%20%C3%BC.html?q=1",
        ".html",
        "utf-8",
        b"<p>hello",
    )
    assert world.dialled == [(PUBLIC, 80)]
    assert world.requests[0].startswith(b"GET /leave%20%C3%BC.html?q=1 HTTP/1.1\r\nHost: a.test\r\n")


def test_no_cookie_credential_or_proxy_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    world = World()
    world.fetcher()("http://a.test/")

    assert world.dialled == [(PUBLIC, 80)]
    assert {line.partition(b":")[0] for line in world.requests[0].split(b"\r\n")[1:] if line} == {
        b"Host", b"User-Agent", b"Accept-Encoding", b"Connection",
    }  # fmt: skip


def test_a_redirect_is_followed_and_the_id_stays_the_address_that_was_asked_for() -> None:
    world = World({"a.test": [PUBLIC], "b.test": ["8.8.8.8"]}, [moved("//b.test:8080/x"), PAGE])
    found = world.fetcher()("http://a.test/")

    assert (found.url, found.final_url) == ("http://a.test/", "http://b.test:8080/x")
    assert world.dialled == [(PUBLIC, 80), ("8.8.8.8", 8080)]


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1/", "http://localhost.test/", "http://169.254.169.254/", "http://[::ffff:127.0.0.1]/",
        "http://2130706433/", "http://0x7f.0.0.1/", "http://10.0.0.1/", "//127.0.0.1/", "file:///etc/passwd",
        "http://user:pw@b.test/", "http://b.test:22/", "gopher://b.test/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_each_hop_is_checked_anew(to: str, status: int) -> None:
    names = {"a.test": [PUBLIC], "b.test": [PUBLIC], "localhost.test": ["127.0.0.1"]}
    world = World(names, [moved(to, status), PAGE])
    with pytest.raises(InputError):
        world.fetcher()("http://a.test/")
    assert world.dialled == [(PUBLIC, 80)]


def test_a_name_that_changes_its_address_after_the_check_gains_nothing() -> None:
    world = World({"a.test": [PUBLIC, "127.0.0.1"]})
    world.fetcher()("http://a.test/")

    assert world.dialled == [(PUBLIC, 80)]


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    world = World()
    fetcher = Fetcher(10_000, resolve=lambda host, port: [PUBLIC, "127.0.0.1"], dial=world.dial)
    with pytest.raises(InputError, match="public internet"):
        fetcher("http://a.test/")
    assert world.dialled == []


def test_redirects_without_end_are_given_up() -> None:
    world = World(replies=[moved("/again")] * 20)
    with pytest.raises(LoadError, match="more than 5 times"):
        world.fetcher()("http://a.test/")
    assert len(world.dialled) == 6


def test_from_https_nothing_leads_to_http() -> None:
    fetcher = World(replies=[]).fetcher()
    hops = iter(["http://a.test/"])
    object.__setattr__(fetcher, "resolve", lambda host, port: [PUBLIC])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fetcher, "_hop", lambda *arguments: next(hops))
        with pytest.raises(LoadError, match="https to http"):
            fetcher("https://a.test/")


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4000\r\n" + b"x" * 16_384,
    ],
)  # fmt: skip
def test_a_page_over_the_limit_is_refused(reply: bytes) -> None:
    with pytest.raises(TooLargeError, match="ORCHESTRATOR_MAX_DOCUMENT_BYTES"):
        World(replies=[reply]).fetcher()("http://a.test/")


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
    ],
)  # fmt: skip
def test_a_server_that_fails_is_named(reply: bytes) -> None:
    with pytest.raises(InputError):
        World(replies=[reply]).fetcher()("http://a.test/")


def test_half_a_page_is_not_a_page() -> None:
    held = []

    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.sendall(PAGE)  # and then nothing: the clock cuts it, which looks like its end
        held.append(theirs)
        return ours

    with pytest.raises(LoadError, match="cannot be fetched"):
        Fetcher(10_000, timeout_s=0.05, resolve=lambda host, port: [PUBLIC], dial=dial)("http://a.test/")
    held.pop().close()


def test_a_server_that_says_nothing_is_given_up() -> None:
    held = []

    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        ours, theirs = socket.socketpair()
        held.append(theirs)
        return ours

    with pytest.raises(LoadError, match="more than 0 s"):
        Fetcher(10, timeout_s=0.05, resolve=lambda host, port: [PUBLIC], dial=dial)("http://a.test/")
    held.pop().close()


@pytest.mark.parametrize("path", ["http://x", "HTTPS://x"])
def test_what_is_a_url(path: str) -> None:
    assert is_url(path)


@pytest.mark.parametrize("path", ["http", "httpx://a", "C:/x", "a/http://x", "ftp://x", ""])
def test_what_is_a_path(path: str) -> None:
    assert not is_url(path)


@pytest.mark.parametrize(
    ("content_type", "path", "suffix"),
    [
        ("text/html", "/x.pdf", ".html"),
        ("TEXT/HTML; charset=x", "/", ".html"),
        ("application/pdf", "/download", ".pdf"),
        ("text/plain", "/a/readme.md", ".md"),
        ("text/plain", "/a/readme", ".txt"),
        ("application/octet-stream", "/a/b.docx", ".docx"),
        ("", "/a/b.rst", ".rst"),
        ("application/octet-stream", "/a/b.exe", ""),
        ("image/png", "/x.txt", ""),
        ("application/json", "/x", ".json"),
    ],
)
def test_the_reader_is_chosen_by_what_the_server_says(content_type: str, path: str, suffix: str) -> None:
    assert suffix_of(content_type, path) == suffix
