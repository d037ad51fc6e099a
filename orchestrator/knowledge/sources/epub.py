"""Reads an e-book (.epub): its chapters in reading order, as HTML pages are read."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote
from xml.etree import ElementTree

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.archive import Archive, refuse_doctype
from orchestrator.knowledge.sources.decode import decode_text
from orchestrator.knowledge.sources.frames import Parsed
from orchestrator.knowledge.sources.html import html_to_text

CONTAINER = "META-INF/container.xml"
FACTS = ("creator", "language", "publisher", "date", "identifier")
_ENCODING = re.compile(rb"<\?xml[^>]{0,100}encoding=[\"']([\w-]{1,40})")
_EMPTY_ELEMENT = re.compile(r"<(title|script|style|textarea|iframe|a|p|div|span|i|b|em|td)\b([^<>]*)/>")


def read_epub(data: bytes) -> Parsed:
    """Title, chapters and what the package says of itself. Raises LoadError for what is no e-book, or a bomb."""
    archive = Archive(data, "an e-book")
    container = _xml(archive, CONTAINER)
    package = next((item.get("full-path", "") for item in container.iter() if _name(item) == "rootfile"), "")
    root = _xml(archive, package)
    chapters = [page for page in _chapters(archive, root, posixpath.dirname(package)) if page.text.strip()]
    if not chapters:
        raise LoadError("the e-book has no text in it, or is protected")
    facts: dict[str, str] = {}
    for item in root.iter():
        if _name(item) in ("title", *FACTS) and item.text:
            facts.setdefault(_name(item), " ".join(item.text.split())[:2_000])
    title = facts.pop("title", "")
    notes = dict.fromkeys(note for page in chapters for note in page.notes)
    return Parsed("\n\n".join(page.text for page in chapters), title, (), tuple(notes), facts)


def _chapters(archive: Archive, root: ElementTree.Element, folder: str) -> Iterator[Parsed]:
    places = {item.get("id"): item.get("href", "") for item in root.iter() if _name(item) == "item"}
    for reference in root.iter():
        if _name(reference) != "itemref" or reference.get("linear") == "no":
            continue
        href = unquote(places.get(reference.get("idref"), "").partition("#")[0])
        name = posixpath.normpath(posixpath.join(folder, href))
        if href and name in archive.names:  # a name in the archive, never one on the disk
            page = archive.read(name)
            declared = _ENCODING.match(page[:200])
            text, notes = decode_text(page, declared[1].decode("ascii") if declared else None)
            yield Parsed(html_to_text(_EMPTY_ELEMENT.sub(r"<\1\2></\1>", text))[1], notes=notes)


def _xml(archive: Archive, name: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(refuse_doctype(archive.read(name), name))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise LoadError(f"the e-book's {name!r} is damaged ({error})") from error


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
