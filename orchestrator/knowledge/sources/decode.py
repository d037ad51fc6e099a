"""Turns the bytes of a text file into text that can be stored, and says what had to be changed."""

from __future__ import annotations

import codecs
import re

from orchestrator.errors import LoadError

MAX_CONTROL_SHARE = 0.05  # a text file has next to no control characters; random bytes have 10 %
SAMPLE = 65_536  # bytes that an encoding is guessed from

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = bytes(code for code in (*range(0, 9), *range(14, 27), *range(28, 32), 127))
_HIGH = bytes(range(128, 256))
_MULTIBYTE = ("big5", "cp932", "cp936", "cp949", "cp950", "euc", "gb", "hz", "iso2022", "johab", "shift")
_SURROGATE = re.compile("[\ud800-\udfff]")


def decode_text(data: bytes, declared: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The text with ``\\n`` line ends, without NUL, and notes on what was changed. Raises LoadError for binary data."""
    if not data.strip(b"\0 \t\r\n"):
        raise LoadError("the file is empty")
    encoding, notes = _encoding(data, declared)
    text = data.decode(encoding, "replace")
    damaged = text.count("\ufffd") - data.count("\ufffd".encode()) if encoding == "utf-8" else 0
    if damaged > 0:
        notes = (*notes, f"{damaged} bytes that are not UTF-8 replaced")
    text, more = clean_text(text.removeprefix("\ufeff"))
    return text, (*notes, *more)


def clean_text(text: str) -> tuple[str, tuple[str, ...]]:
    """The text as PostgreSQL can hold it (``\\n`` line ends; no NUL, inner BOM or lone surrogate), and notes on the changes."""
    notes = []
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        notes.append(f"{text.count(chr(0))} NUL characters removed")
        text = text.replace("\0", "")
    if "\ufeff" in text:
        notes.append(f"{text.count(chr(0xFEFF))} byte order marks inside the text removed")
        text = text.replace("\ufeff", "")
    text, surrogates = _SURROGATE.subn("\ufffd", text)
    if surrogates:
        notes.append(f"{surrogates} lone surrogates replaced")
    return text, tuple(notes)


def _encoding(data: bytes, declared: str | None) -> tuple[str, tuple[str, ...]]:
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name, ()
    wide = _utf16_without_mark(data[:SAMPLE])
    if wide:
        return wide, (f"no byte order mark; read as {wide}",)
    controls = len(data) - len(data.translate(None, _CONTROLS))
    if controls > max(MAX_CONTROL_SHARE * len(data), 2):
        raise LoadError("the file is binary, not text; convert it to text, Markdown, HTML, PDF or DOCX first")
    if declared and not declared.lower().startswith(("utf-16", "utf-32")):  # such a page could not have said so
        try:
            data.decode(declared)
            return codecs.lookup(declared).name, ()
        except (UnicodeError, LookupError):
            pass  # the page is wrong about itself
    try:
        data.decode("utf-8")
        return "utf-8", ()
    except UnicodeDecodeError:
        return _guess(data)


def _utf16_without_mark(sample: bytes) -> str | None:
    """Latin letters, digits, spaces and line ends have a zero byte in UTF-16, always on the same side."""
    rest = sample.replace(b"\0", b"")
    if len(rest) > len(sample) * 0.6 and rest.translate(None, _CONTROLS) == rest and _is_utf8(rest):
        return None  # plain text with a few stray zeros
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    half = max(len(sample) // 2, 1)
    if odd > half / 20 and even <= odd / 50:
        return _if_text(sample, "utf-16-le")
    if even > half / 20 and odd <= even / 50:
        return _if_text(sample, "utf-16-be")
    return None


def _is_utf8(sample: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # its last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def _if_text(sample: bytes, encoding: str) -> str | None:
    text = sample[: len(sample) // 2 * 2].decode(encoding, "replace")
    return encoding if text.count("\ufffd") + text.count("\0") <= len(text) / 50 else None


def _guess(data: bytes) -> tuple[str, tuple[str, ...]]:
    """The likeliest encoding of bytes that are not UTF-8."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    if broken * 10 < beyond_ascii:  # mostly good UTF-8 with some damage
        return "utf-8", ()
    from charset_normalizer import from_bytes

    first = re.search(rb"[\x80-\xff]", data)
    begin = max(0, first.start() - 200) if first else 0
    sample = data[begin : begin + SAMPLE]
    matches = list(from_bytes(sample))
    if len(sample) - len(sample.translate(None, _HIGH)) < len(sample) / 4:  # Chinese, Japanese, Korean have more
        matches = [match for match in matches if not match.encoding.startswith(_MULTIBYTE)]
    best = matches[0] if matches else None
    name = best.encoding if best else "cp1252"
    for match in matches:  # a short text fits several; of equals, the commonest on Western machines
        is_equal = best is not None and match.chaos <= best.chaos and match.coherence >= best.coherence - 0.1
        if is_equal and "cp1252" in match.could_be_from_charset:
            name = "cp1252"
    return name, (f"not UTF-8; read as {name}",)
