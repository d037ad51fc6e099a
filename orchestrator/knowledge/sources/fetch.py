"""Fetches what a URL names, and never anything of this machine or its network: checked, pinned, bounded (row E5)."""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from orchestrator.errors import InputError, LoadError, TooLargeError
from orchestrator.knowledge.sources.kinds import suffix_of

MAX_REDIRECTS = 5
MAX_URL = 2_000
TIMEOUT_S = 30.0  # for all hops together
SILENCE_S = 10.0
BLOCK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
AGENT = "orchestrator-ingest"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
IsAllowed = Callable[[Address], bool]
Dial = Callable[[tuple[str, int], float], socket.socket]

# Everything that is not unicast on the public internet. Of IPv6 only 2000::/3 is; in it these carry or hide others:
_REFUSED_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
]  # fmt: skip
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = [
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")  # Teredo and others, examples, 6to4
]
_ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of an interface id that carries an IPv4 address
_NUMBER = re.compile(r"(?:\d+|0x[0-9a-f]*)", re.IGNORECASE)
_SPELLING = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came back: ``url`` as asked for (the identity), ``final_url`` after redirects, suffix of the right reader."""

    url: str
    final_url: str
    content_type: str
    suffix: str
    charset: str
    data: bytes


def is_url(path: str) -> bool:
    """True for what is meant as a URL to fetch, and is no path."""
    return path[:8].lower().startswith(("http://", "https://"))


def is_public(address: Address) -> bool:
    """True for an address on the public internet that carries no other address inside."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    if address.scope_id is not None or address not in _PUBLIC_V6 or any(address in net for net in _REFUSED_V6):
        return False
    return (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, asked for once. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches URLs over http and https. ``resolve``, ``is_allowed`` and ``dial`` are arguments so that tests can see."""

    max_bytes: int
    timeout_s: float = TIMEOUT_S
    resolve: Resolve = resolve
    is_allowed: IsAllowed = is_public
    dial: Dial = socket.create_connection

    def __call__(self, url: str) -> Fetched:
        """The bytes at a URL. Raises InputError for one that is refused, LoadError when the server fails."""
        deadline = time.monotonic() + self.timeout_s
        asked = url = _normal(url)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._hop(asked, url, deadline)
            if isinstance(found, Fetched):
                return found
            if url.startswith("https:") and found.startswith("http:"):
                raise LoadError(
                    "the server redirects from https to http; ask for that address yourself if you trust it"
                )
            url = found
        raise LoadError(f"the server redirects more than {MAX_REDIRECTS} times")

    def _hop(self, asked: str, url: str, deadline: float) -> Fetched | str:
        """The page, or the URL that it redirects to."""
        parts = urlsplit(url)
        host, port = _place(parts)
        address = self._address(host, port)
        connection = _Pinned(host, port, address, self.dial, deadline, parts.scheme == "https")
        watch = threading.Timer(max(deadline - time.monotonic(), 0.01), connection.cut)
        watch.daemon = True
        watch.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", "Connection": "close"}
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            if response.status in REDIRECTS:
                return _normal(urljoin(url, response.getheader("Location") or ""))
            return self._page(asked, url, response, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= deadline
            reason = f"it took more than {self.timeout_s:.0f} s" if late else f"{type(error).__name__}: {error}"
            raise LoadError(f"the URL cannot be fetched: {reason}") from error
        finally:
            watch.cancel()
            connection.close()

    def _address(self, host: str, port: int) -> str:
        """The one address that is connected to: it cannot become another between the check and the connection."""
        try:
            found = [ipaddress.ip_address(address) for address in self.resolve(host, port)]
        except (OSError, ValueError, UnicodeError) as error:
            raise LoadError(f"the host of the URL is not found: {error}") from error
        refused = [address for address in found if not self.is_allowed(address)]
        if refused or not found:
            raise InputError("the URL leads to an address that is not on the public internet; it is not fetched")
        return str(found[0])

    def _page(self, asked: str, url: str, response: http.client.HTTPResponse, deadline: float) -> Fetched:
        if response.status != 200:
            raise LoadError(f"the server answers {response.status} to the URL")
        if response.getheader("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise LoadError("the server sends compressed data that was not asked for")
        declared = response.getheader("Content-Length", "")
        data = bytearray()
        is_over = declared.isdigit() and int(declared[:20]) > self.max_bytes
        while not is_over and (block := response.read(min(BLOCK, self.max_bytes + 1 - len(data)))):
            data += block
            is_over = len(data) > self.max_bytes
        if is_over:
            raise TooLargeError(f"the page has more than {self.max_bytes:,} bytes (ORCHESTRATOR_MAX_DOCUMENT_BYTES)")
        if (declared.isdigit() and len(data) < int(declared[:20])) or time.monotonic() >= deadline:
            raise LoadError("the URL cannot be fetched: the page broke off")  # half a page is not stored as one
        content_type = response.getheader("Content-Type", "")
        charset = response.headers.get_content_charset() or ""
        suffix = suffix_of(content_type, urlsplit(url).path)
        return Fetched(asked, url, content_type, suffix, charset, bytes(data))


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever the name says by now; https checks the certificate against the name."""

    def __init__(self, host: str, port: int, address: str, dial: Dial, deadline: float, is_tls: bool) -> None:
        super().__init__(host, port)
        self._address, self._dial, self._deadline, self._is_tls = address, dial, deadline, is_tls
        if port == (443 if is_tls else 80):
            self.default_port = port  # so that the Host header leaves it out

    def connect(self) -> None:
        """Connects to the address that was checked; no proxy of the environment is asked."""
        silence = min(SILENCE_S, max(self._deadline - time.monotonic(), 0.01))
        self.sock = self._dial((self._address, self.port), silence)
        self.sock.settimeout(silence)
        if self._is_tls:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def cut(self) -> None:
        """Ends the connection from another thread: a server that drips bytes keeps each single read short."""
        sock = getattr(self, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _normal(url: str) -> str:
    """The URL without fragment, in ASCII. Raises InputError for one that is no plain web address."""
    if len(url) > MAX_URL or _SPELLING.search(url):
        raise InputError(f"the URL has spaces, control characters or backslashes, or more than {MAX_URL:,} characters")
    try:
        parts = urlsplit(url)
        _place(parts)
    except ValueError as error:
        raise InputError(f"the URL is malformed: {error}") from error
    path = quote(parts.path, safe="/%:@!$&'()*+,;=-._~")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=-._~")
    return parts._replace(scheme=parts.scheme.lower(), path=path, query=query, fragment="").geturl()


def _place(parts: SplitResult) -> tuple[str, int]:
    """Host and port. Raises InputError for what is refused whatever it leads to."""
    if parts.scheme.lower() not in ("http", "https"):
        raise InputError("only http and https URLs are fetched")
    if parts.username is not None or parts.password is not None:
        raise InputError("the URL holds a user name or password; URLs are stored and shown, so it is not fetched")
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    if port not in (80, 443) and port < 1024:
        raise InputError(f"the URL names port {port}; of the ports under 1024 only 80 and 443 are fetched from")
    host = (parts.hostname or "").rstrip(".")
    if "%" in host or not host:
        raise InputError("the URL names no host, or a local zone")
    if ":" not in host:
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise InputError(f"the URL's host is no name: {error}") from error
        if _NUMBER.fullmatch(host.rpartition(".")[2]) and not _is_dotted(host):
            raise InputError("the URL's host is a number in disguise; write an address as four decimal numbers")
    return host, port


def _is_dotted(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
