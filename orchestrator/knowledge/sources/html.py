"""Turns an HTML page into its title and its text, with headings, lists, tables and code written as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.decode import decode_text
from orchestrator.knowledge.sources.frames import Parsed

_DROPPED = {"script", "style", "noscript", "template", "svg", "head", "iframe", "object", "nav", "select", "button"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "header", "html", "hr", "main", "ol", "p", "section", "summary", "table", "tbody",
    "tfoot", "thead", "ul",
}  # fmt: skip
MAX_DEPTH = 5_000  # the parser's time grows with the square of the nesting

_VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "track", "wbr"}
_CLOSES_ITSELF = {"p", "li", "td", "th", "tr", "dt", "dd", "option", "thead", "tbody", "tfoot", "colgroup"}
_UNCOUNTED = _VOID | _CLOSES_ITSELF
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?([\w-]{1,40})", re.IGNORECASE)
_FENCE = "```"
_SPACE = re.compile(r"\s+")


def read_html(data: bytes, charset: str | None = None) -> Parsed:
    """A page; ``charset`` is what the server said of it. Raises LoadError for what is no text, or nested absurdly."""
    declared = _CHARSET.search(data[:2048])
    text, notes = decode_text(data, charset or (declared[1].decode("ascii", "replace") if declared else None))
    title, body = html_to_text(text)
    return Parsed(body, title, notes=notes)


def html_to_text(html: str) -> tuple[str, str]:
    """Title (empty when there is none) and text. Raises LoadError for a page that is nested absurdly deep."""
    if _depth(html) > MAX_DEPTH:
        raise LoadError(f"the page is nested deeper than {MAX_DEPTH:,} elements, as no page is that people read")
    from selectolax.lexbor import LexborHTMLParser, SelectolaxError

    try:
        tree = LexborHTMLParser(html)
    except SelectolaxError as error:  # it reads whatever is thrown at it; what it lacks is memory
        raise LoadError(f"the page of {len(html):,} characters is too large for its parser; split it") from error
    titles = tree.css("title")
    heading = tree.css_first("h1")
    title = _inline(titles[0].text()) if titles else _inline(heading.text()) if heading else ""
    lines = []
    is_code = False
    for line in "".join(_pieces(tree.root)).split("\n"):
        is_code ^= line == _FENCE
        lines.append(line if is_code else line.strip(" "))
    return title, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _depth(html: str) -> int:
    """How deep the elements are nested at most; those that need no end tag are not counted."""
    depth = deepest = 0
    for match in _TAG.finditer(html):
        if match[2].lower() not in _UNCOUNTED:
            depth += -1 if match[1] else 1
            deepest = max(deepest, depth)
    return deepest


def _inline(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _pieces(root: Any) -> Iterator[str]:
    """The text in document order, by a walk without recursion: a page may be nested deeper than Python's stack."""
    pending: list[Any] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            yield node
            continue
        tag = node.tag
        if tag == "-text":
            yield _SPACE.sub(" ", node.text(deep=False) or "")
        elif tag == "pre":
            yield f"\n\n{_FENCE}\n" + node.text().strip("\n") + f"\n{_FENCE}\n\n"
        elif tag == "tr":
            cells = [_inline(cell.text(separator=" ")) for cell in _children(node) if cell.tag in ("td", "th")]
            yield "\n| " + " | ".join(cells) + " |"
        elif len(tag) == 2 and tag[0] == "h" and tag[1] in "123456":
            yield f"\n\n{'#' * int(tag[1])} {_inline(node.text())}\n\n"
        elif tag == "br":
            yield "\n"
        elif tag not in _DROPPED and not tag.startswith(("-", "!", "_")):
            before, after = ("\n- ", "") if tag == "li" else ("\n\n", "\n\n") if tag in _BLOCKS else ("", "")
            pending.append(after)
            pending.extend(reversed(_children(node)))
            pending.append(before)


def _children(node: Any) -> list[Any]:
    found, child = [], node.child
    while child is not None:
        found.append(child)
        child = child.next
    return found
