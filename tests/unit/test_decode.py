"""Bytes of text files become text, with notes on what had to be changed."""

from __future__ import annotations

import random

import hypothesis
import hypothesis.strategies
import pytest

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.decode import clean_text, decode_text

RUSSIAN = (
    "Сотрудники имеют тридцать дней отпуска в год. Заявление подаётся в календаре, и начальник его подтверждает. " * 3
)
GERMAN = "Für die Fußgänger gilt: Über die Straße nur bei Grün. " * 5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_encodings_need_no_note(encoding: str) -> None:
    assert decode_text(GERMAN.encode(encoding)) == (GERMAN, ())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [GERMAN, RUSSIAN])
def test_utf16_without_a_mark_is_seen(encoding: str, text: str) -> None:
    found, notes = decode_text(text.encode(encoding))
    assert found == text
    assert encoding in notes[0]


@pytest.mark.parametrize(("encoding", "text"), [("cp1251", RUSSIAN), ("cp1252", GERMAN), ("latin-1", GERMAN)])
def test_old_encodings_are_guessed_with_a_note(encoding: str, text: str) -> None:
    found, notes = decode_text(text.encode(encoding))
    assert found == text
    assert notes[0].startswith("not UTF-8; read as ")


def test_damaged_utf8_stays_utf8() -> None:
    found, notes = decode_text(GERMAN.encode() + b"\xff\xfe end")
    assert found == GERMAN + "\ufffd\ufffd end"
    assert notes == ("2 bytes that are not UTF-8 replaced",)


def test_nul_is_removed_with_a_note() -> None:
    assert decode_text(b"Thirty days\0 of leave for everyone in the company.") == (
        "Thirty days of leave for everyone in the company.",
        ("1 NUL characters removed",),
    )


def test_byte_order_marks_inside_the_text_are_removed_with_a_note() -> None:
    assert decode_text("\ufeffone\ufefftwo".encode()) == ("onetwo", ("1 byte order marks inside the text removed",))


@hypothesis.given(hypothesis.strategies.text(hypothesis.strategies.characters(exclude_categories=())))
def test_what_is_cleaned_can_be_stored(text: str) -> None:
    cleaned, notes = clean_text(text)
    cleaned.encode("utf-8")
    assert not set(cleaned) & {"\0", "\r", "\ufeff"}
    assert clean_text(cleaned) == (cleaned, ())
    assert notes or cleaned == text.replace("\r\n", "\n").replace("\r", "\n")


def test_line_ends_become_newlines() -> None:
    assert decode_text(b"a\r\nb\rc\n") == ("a\nb\nc\n", ())


def test_lone_surrogates_are_replaced() -> None:
    assert clean_text("a\ud800b\udfff") == ("a\ufffdb\ufffd", ("2 lone surrogates replaced",))


@pytest.mark.parametrize("data", [b"", b"  \n", b"\0\0\0"])
def test_empty_files_are_refused(data: bytes) -> None:
    with pytest.raises(LoadError, match="empty"):
        decode_text(data)


@pytest.mark.parametrize("seed", range(50))
def test_random_bytes_are_refused(seed: int) -> None:
    with pytest.raises(LoadError, match="binary"):
        decode_text(random.Random(seed).randbytes(4_000))


def test_a_page_that_is_wrong_about_itself_is_read_anyway() -> None:
    for declared in ("utf-16", "ascii", "no-such", "zlib", "undefined"):
        assert decode_text("Grüße an alle".encode(), declared)[0] == "Grüße an alle"


def test_a_stray_zero_byte_does_not_make_a_short_text_utf_16() -> None:
    text, notes = decode_text(b"Nul\0byte text about zebras\n")
    assert text == "Nulbyte text about zebras\n"
    assert notes == ("1 NUL characters removed",)


@pytest.mark.parametrize(
    "text",
    [
        "Caf\u00e9 cr\u00e8me br\u00fbl\u00e9e et des mots fran\u00e7ais",
        "Stra\u00dfe \u00fcber K\u00f6ln, sch\u00f6ne Gr\u00fc\u00dfe",
    ],
)
def test_a_short_western_text_is_read_as_western(text: str) -> None:
    assert decode_text(text.encode("cp1252"))[0] == text
