"""URLs against real servers on this machine: one that may be reached, and a canary that nothing may ever connect to."""

from __future__ import annotations

import ipaddress
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.errors import InputError
from orchestrator.knowledge.sources.fetch import Fetcher, is_public
from orchestrator.knowledge.sources.load import Loader, LoadFailure
from orchestrator.types import Document

OPEN = ipaddress.ip_address("127.0.0.2")  # stands for the internet; the canary listens on 127.0.0.1
PAGE = "<title>Leave</title><p>Thirty days of leave for Müller."


def is_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address == OPEN or is_public(address)


class Handler(BaseHTTPRequestHandler):
    """``/to?URL`` redirects there, ``/cp1252`` and everything else is a page."""

    def do_GET(self) -> None:
        path, _, target = self.path.partition("?")
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/png" if path == "/png" else "text/html; charset=windows-1252")
        self.end_headers()
        self.wfile.write(PAGE.encode("cp1252"))

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """Address of a server that stands for the internet."""
    server = ThreadingHTTPServer((str(OPEN), 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://site.test:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def canary() -> Iterator[int]:
    """The port of a listener that fails the test when anything has connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
        assert select.select([listener], [], [], 0.2)[0] == [], "something connected to the canary"


def resolve(host: str, port: int) -> Sequence[str]:
    return [str(OPEN)] if host == "site.test" else [str(found[4][0]) for found in socket.getaddrinfo(host, port)]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]", "2130706433", "0x7f000001", "0177.0.0.1", "127.1",
        "0.0.0.0", "[::]", "[::127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "①②⑦.0.0.1",
        "site.test@127.0.0.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["asked", "redirected"])
def test_nothing_connects_to_this_machine(host: str, way: str, site: str) -> None:
    with canary() as port:
        url = f"http://{host}:{port}/"
        with pytest.raises(InputError):
            Fetcher(10_000, resolve=resolve, is_allowed=is_allowed)(f"{site}/to?{url}" if way == "redirected" else url)


def test_the_metadata_address_of_clouds_is_never_dialled(site: str) -> None:
    dialled = []

    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        dialled.append(address[0])
        return socket.create_connection(address, timeout)

    with pytest.raises(InputError, match="public internet"):
        Fetcher(10_000, resolve=resolve, is_allowed=is_allowed, dial=dial)(f"{site}/to?http://169.254.169.254/latest/")
    assert dialled == [str(OPEN)]


def test_a_name_that_is_bound_anew_between_check_and_connection(site: str) -> None:
    with canary() as port:
        answers = iter([str(OPEN)])
        fetcher = Fetcher(
            10_000, resolve=lambda host, port: [next(answers, "127.0.0.1")], is_allowed=is_allowed, timeout_s=5
        )
        with pytest.raises(InputError):  # nobody listens there on the canary's port
            fetcher(f"http://site.test:{port}/")


def test_a_page_becomes_a_document(site: str) -> None:
    fetch = Fetcher(10_000, resolve=resolve, is_allowed=is_allowed)
    page, moved, picture = Loader([f"{site}/leave", f"{site}/to?/other", f"{site}/png"], fetch=fetch)

    assert isinstance(page, Document)
    assert (page.external_id, page.title, page.text) == (f"{site}/leave", "Leave", "Thirty days of leave for Müller.")
    assert page.media_type == "text/html"
    assert isinstance(moved, Document)
    assert (moved.external_id, moved.source) == (f"{site}/to?/other", f"{site}/other")
    assert isinstance(picture, LoadFailure)
    assert picture.skipped


def test_one_url_that_fails_stops_no_other(site: str) -> None:
    fetch = Fetcher(10_000, resolve=resolve, is_allowed=is_allowed)
    found = list(Loader(["http://127.0.0.1/x", f"{site}/leave"], fetch=fetch))

    assert [type(one) for one in found] == [LoadFailure, Document]


def test_urls_are_off_by_default() -> None:
    with pytest.raises(InputError, match="ORCHESTRATOR_ALLOW_URLS"):
        Loader(["https://example.org/"])
