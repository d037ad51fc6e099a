"""Reads an e-mail: its head, its text, and its attachments, each of which becomes a document when it can be read."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.decode import clean_text, decode_text
from orchestrator.knowledge.sources.frames import Parsed, Trouble
from orchestrator.knowledge.sources.html import html_to_text
from orchestrator.knowledge.sources.kinds import MAIL

MAX_PARTS = 200
HEADERS = ("From", "To", "Cc", "Date", "Subject")

ReadAttachment = Callable[[str, bytes], Iterator[Parsed | Trouble]]


def read_mail(data: bytes, read_attachment: ReadAttachment) -> Iterator[Parsed | Trouble]:
    """The message, then what ``read_attachment(name, bytes)`` makes of its attachments. Raises LoadError for no mail."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    heads = {name: _header(message, name) for name in HEADERS}
    if not isinstance(message, EmailMessage) or not any(heads.values()):
        raise LoadError("the file is not an e-mail: it has none of the headers From, To, Date, Subject")
    parts = _leaves(message)
    attachments = [(_file_name(part), part) for part in parts if _is_attachment(part)]
    body, notes = _body([part for part in parts if not _is_attachment(part)])
    lines = [f"{name}: {value}" for name, value in heads.items() if value]
    text, more = clean_text("\n".join(lines) + "\n\n" + body)
    names = [name for name, _ in attachments]
    facts: dict[str, Any] = {name.lower(): value for name, value in heads.items() if value and name != "Subject"}
    facts["message_id"] = _header(message, "Message-ID").strip("<>")
    yield Parsed(
        text=text,
        title=heads["Subject"],
        media_type=MAIL,
        notes=(*notes, *more),
        metadata={**{name: fact for name, fact in facts.items() if fact}, **({"attachments": names} if names else {})},
    )
    for name, part in attachments:
        yield from read_attachment(name, _bytes(part))


def _leaves(message: EmailMessage) -> list[Any]:
    """The parts that hold something, in order; a forwarded message counts as one. Without recursion."""
    found: list[Any] = []
    pending: list[Any] = [message]
    while pending:
        part = pending.pop()
        if part.get_content_maintype() == "multipart":
            pending.extend(reversed(part.get_payload() if isinstance(part.get_payload(), list) else []))
        else:
            found.append(part)
        if len(found) + len(pending) > MAX_PARTS:
            raise LoadError(f"the e-mail has more than {MAX_PARTS} parts")
    return found


def _is_attachment(part: Any) -> bool:
    is_text = part.get_content_type() in ("text/plain", "text/html")
    return part.get_content_disposition() == "attachment" or bool(part.get_filename()) or not is_text


def _file_name(part: Any) -> str:
    if part.get_content_type() == "message/rfc822":
        return clean_text(str(part.get_filename() or "message.eml"))[0]
    name = str(part.get_filename() or "").replace("\\", "/").rpartition("/")[2]
    return clean_text(" ".join(name.split()))[0] or f"unnamed ({part.get_content_type()})"


def _bytes(part: Any) -> bytes:
    if part.get_content_type() == "message/rfc822":
        inner = part.get_payload()
        return inner[0].as_bytes() if isinstance(inner, list) and inner else b""
    return part.get_payload(decode=True) or b""


def _body(parts: list[Any]) -> tuple[str, tuple[str, ...]]:
    """The plain text, or else the HTML as text; a message may have several of each."""
    texts: list[str] = []
    notes: list[str] = []
    plain = [part for part in parts if part.get_content_type() == "text/plain"]
    for part in plain or parts:
        data = part.get_payload(decode=True) or b""
        if not data.strip():
            continue
        text, changed = decode_text(data, part.get_content_charset())
        texts.append(text if part.get_content_type() == "text/plain" else html_to_text(text)[1])
        notes.extend(changed)
    return "\n\n".join(text.strip("\n") for text in texts), tuple(notes)


def _header(message: Any, name: str) -> str:
    try:
        return clean_text(" ".join(str(message.get(name, "")).split()))[0][:2_000]
    except Exception:  # the library raises IndexError and others for heads that break its grammar
        return ""
