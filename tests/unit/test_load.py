"""Loading files: every kind, every kind of damage."""

from __future__ import annotations

import io
import json
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.knowledge.sources.load import Loader, LoadFailure, load_path
from orchestrator.knowledge.sources.worker import bare_environment
from orchestrator.types import Document


def load(path: Path, **options: object) -> list[Document | LoadFailure]:
    return list(load_path(path, **options))  # type: ignore[arg-type]


def one(path: Path, **options: object) -> Document:
    (found,) = load(path, **options)
    assert isinstance(found, Document), found
    return found


def failure(path: Path, **options: object) -> LoadFailure:
    (found,) = load(path, **options)
    assert isinstance(found, LoadFailure), found
    return found


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_pdf(pages: list[str], title: str = "") -> bytes:
    """A small PDF, written by hand: one line of text on each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(len(objects) + 1)
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Contents {len(objects)} 0 R /Resources << /Font << /F1 "
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
        )
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] /Count {len(kids)} >>"
    objects.append(f"<< /Title ({title}) >>")
    out = io.BytesIO(b"")
    out.write(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1"))
    xref = out.tell()
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    out.writelines(f"{place:010} 00000 n \n".encode() for place in places)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    out.write(f"trailer\n{trailer}\nstartxref\n{xref}\n%%EOF\n".encode())
    return out.getvalue()


def test_markdown_with_front_matter(tmp_path: Path) -> None:
    text = "---\nid: leave\ntitle: Leave policy\nvalid_from: 2025-03-01\nowner: HR\ntags: [a, b]\n---\n\n# Leave\n\nThirty days.\n"
    found = one(written(tmp_path / "x.md", text))
    assert (found.external_id, found.title, found.media_type) == ("leave", "Leave policy", "text/markdown")
    assert found.text == "# Leave\n\nThirty days.\n"
    assert found.valid_from == datetime(2025, 3, 1, tzinfo=UTC)
    assert found.metadata == {"owner": "HR", "tags": ["a", "b"]}


def test_title_and_id_without_front_matter(tmp_path: Path) -> None:
    written(tmp_path / "hr" / "leave.md", "intro\n\n# Leave #\n\nText")
    written(tmp_path / "plain.txt", "Text")
    written(tmp_path / "flask.rst", "Quick start\n===========\n\nText")
    found = [item for item in load(tmp_path) if isinstance(item, Document)]
    assert [(d.external_id, d.title) for d in found] == [
        ("flask.rst", "Quick start"),
        ("hr/leave.md", "Leave"),
        ("plain.txt", "plain"),
    ]


def test_a_thematic_break_is_not_front_matter(tmp_path: Path) -> None:
    text = "---\nJust a line\n---\ntext"
    assert one(written(tmp_path / "x.md", text)).text == text


def test_broken_front_matter_names_its_line(tmp_path: Path) -> None:
    assert "line 3" in failure(written(tmp_path / "x.md", "---\nid: a\ntitle: [b\n---\ntext")).reason


def test_a_valid_from_that_is_no_date_is_refused(tmp_path: Path) -> None:
    assert "valid_from" in failure(written(tmp_path / "x.md", "---\nvalid_from: soon\n---\ntext")).reason


def test_yaml_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)
    ]
    assert "metadata" in failure(written(tmp_path / "x.md", "---\n" + "\n".join(lines) + "\n---\ntext")).reason


def test_dated_versions_of_one_document_come_in_order(tmp_path: Path) -> None:
    written(tmp_path / "a-new.md", "---\nid: x\nvalid_from: 2025-01-01\n---\nnew")
    written(tmp_path / "b-old.md", "---\nid: x\nvalid_from: 2024-01-01\n---\nold")
    written(tmp_path / "c-first.md", "---\nid: x\n---\nfirst")
    assert [item.text for item in load(tmp_path) if isinstance(item, Document)] == ["first", "old", "new"]


def test_the_same_id_twice_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.md", "---\nid: x\n---\none")
    written(tmp_path / "b.md", "---\nid: x\n---\ntwo")
    first, second = load(tmp_path)
    assert isinstance(first, Document)
    assert isinstance(second, LoadFailure)
    assert "second time" in second.reason


def test_hidden_files_are_left_out_and_unknown_ones_reported(tmp_path: Path) -> None:
    written(tmp_path / ".git" / "a.md", "x")
    written(tmp_path / ".hidden.md", "x")
    written(tmp_path / "picture.png", b"\x89PNG")
    found = failure(tmp_path)
    assert found.skipped
    assert " .docx .eml " in found.reason


def test_html(tmp_path: Path) -> None:
    page = """<html><head><title>Leave &amp; travel</title><style>x{}</style></head><body><nav>menu</nav>
    <h1>Leave</h1><p>Thirty <b>days</b>.<br>Paid.</p><ul><li>one<li>two</ul><script>evil()</script>
    <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><pre>if x:\n    y</pre></body></html>"""
    found = one(written(tmp_path / "x.html", page))
    assert found.title == "Leave & travel"
    assert found.text == (
        "# Leave\n\nThirty days.\nPaid.\n\n- one\n- two\n\n| a | b |\n| 1 | 2 |\n\n```\nif x:\n    y\n```"
    )


def test_html_in_its_declared_encoding(tmp_path: Path) -> None:
    page = '<html><head><meta charset="windows-1251"></head><body><p>Отпуск</p></body></html>'
    assert one(written(tmp_path / "x.html", page.encode("cp1251"))).text == "Отпуск"


def test_html_nested_deeper_than_pythons_stack(tmp_path: Path) -> None:
    assert one(written(tmp_path / "x.html", "<div>" * 4_000 + "deep" + "</div>" * 4_000)).text == "deep"
    assert "nested" in failure(written(tmp_path / "x.html", "<b>" * 500_000)).reason


def test_pdf_with_pages(tmp_path: Path) -> None:
    found = one(written(tmp_path / "x.pdf", make_pdf(["First page.", "Second page."], "Two pages")))
    assert found.title == "Two pages"
    assert [found.text[start:].split("\n")[0] for start in found.pages] == ["First page.", "Second page."]


def test_pdf_without_text_names_ocr(tmp_path: Path) -> None:
    assert "OCR" in failure(written(tmp_path / "x.pdf", make_pdf(["", ""]))).reason


@pytest.mark.parametrize("content", [b"%PDF-1.7 broken", b"not a pdf at all", make_pdf(["Text"])[:200]])
def test_damaged_pdf(tmp_path: Path, content: bytes) -> None:
    assert "damaged" in failure(written(tmp_path / "x.pdf", content)).reason


def test_docx(tmp_path: Path) -> None:
    import docx

    document = docx.Document()
    document.core_properties.title = "Travel"
    document.add_heading("Travel", 1)
    document.add_paragraph("Book early.")
    document.add_paragraph("by train", style="List Bullet")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "a", "b"
    document.save(str(tmp_path / "x.docx"))
    found = one(tmp_path / "x.docx")
    assert (found.title, found.text) == ("Travel", "# Travel\n\nBook early.\n\n- by train\n\n| a | b |")


def test_docx_that_is_a_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * 50_000_000)
    assert "zip bomb" in failure(tmp_path / "x.docx").reason


def test_docx_that_is_something_else(tmp_path: Path) -> None:
    assert "not a Word document" in failure(written(tmp_path / "x.docx", b"hello")).reason


def test_a_reader_that_needs_too_much_memory_dies_alone(tmp_path: Path) -> None:
    import zlib

    stream = zlib.compress(b" " * 100_000_000, 1)
    body = make_pdf(["x"])
    begin, end = body.index(b"stream\n") + 7, body.index(b"\nendstream")
    length = b"/Length %d" % (end - begin)
    assert length in body
    bomb = (body[:begin] + stream + body[end:]).replace(length, b"/Length %d /Filter /FlateDecode" % len(stream))
    assert failure(written(tmp_path / "x.pdf", bomb)).reason


def test_a_pdf_title_with_nul(tmp_path: Path) -> None:
    assert "\0" not in one(written(tmp_path / "x.pdf", make_pdf(["Text."], "T\0w\0o"))).title


def lines(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"


def test_jsonl(tmp_path: Path) -> None:
    text = lines(
        {
            "id": "a",
            "title": "T",
            "text": "x\r\ny",
            "metadata": {"k": [1, None]},
            "lang": "en",
            "valid_from": "2025-01-01",
        }
    )
    found = one(written(tmp_path / "x.jsonl", text))
    assert (found.external_id, found.title, found.text) == ("a", "T", "x\ny")
    assert found.metadata == {"k": [1, None], "lang": "en"}
    assert found.valid_from == datetime(2025, 1, 1, tzinfo=UTC)


def test_bad_lines_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "one"},
        "{not json",
        {"text": "no id"},
        {"id": "c"},
        {"id": "d", "text": "  "},
        ["list"],
        "",
        {"id": 7, "text": "seven"},
        {"id": "a", "text": "again"},
        {"id": "e", "text": "x", "valid_from": "never"},
        "[" * 100_000,
        {"id": "f", "text": "last"},
    ]
    found = load(written(tmp_path / "x.jsonl", lines(*rows)))
    assert [item.external_id for item in found if isinstance(item, Document)] == ["a", "7", "f"]
    assert [item.line for item in found if isinstance(item, LoadFailure)] == [2, 3, 4, 5, 6, 9, 10, 11]


def test_the_id_can_be_another_field(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", lines({"key": "k1", "text": "x"}))
    assert one(path, id_from="key").external_id == "k1"


def test_what_json_allows_and_postgres_does_not_is_replaced_and_noted(tmp_path: Path) -> None:
    metadata = '{"k\\u0000": "\\ud800", "n": NaN, "i": 1e999}'
    row = '{"id": "a\\u0000", "title": "t\\ud800", "text": "x\\u0000\\udfff", "metadata": ' + metadata + "}"
    found = one(written(tmp_path / "x.jsonl", row))
    assert (found.external_id, found.title, found.text) == ("a", "t\ufffd", "x\ufffd")
    assert found.metadata == {"k": "\ufffd", "n": None, "i": None}
    assert len(found.notes) == 3


def test_a_line_over_the_limit_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", lines({"id": "a", "text": "x" * 5_000}, {"id": "b", "text": "y"}))
    first, second = load(path, max_bytes=1_000)
    assert isinstance(first, LoadFailure)
    assert first.line == 1
    assert isinstance(second, Document)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_jsonl_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({"id": "a", "text": "Grüße"}, ensure_ascii=False) + "\n"
    assert one(written(tmp_path / "x.jsonl", text.encode(encoding))).text == "Grüße"


def test_jsonl_is_read_lazily(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", lines(*({"id": n, "text": "x" * 1_000} for n in range(2_000))))
    loader = Loader([path])
    next(iter(loader))
    assert 0 <= loader.read_bytes < loader.total_bytes / 100


@pytest.mark.parametrize("name", ["x.md", "x.txt", "x.html", "x.jsonl", "x.pdf", "x.docx"])
@pytest.mark.parametrize("content", [b"", b"   \n"])
def test_empty_files_are_failures(tmp_path: Path, name: str, content: bytes) -> None:
    assert failure(written(tmp_path / name, content)).reason


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    assert (
        "ORCHESTRATOR_MAX_DOCUMENT_BYTES" in failure(written(tmp_path / "x.txt", "x" * 2_000), max_bytes=1_000).reason
    )


def test_a_long_single_line(tmp_path: Path) -> None:
    assert len(one(written(tmp_path / "x.txt", "word " * 1_000_000)).text) == 5_000_000


def test_names_that_are_not_text(tmp_path: Path) -> None:
    name = b"caf\xe9.md".decode("utf-8", "surrogateescape")
    written(tmp_path / name, "text")
    assert one(tmp_path).external_id == "caf\ufffd.md"


def test_names_that_are_too_long(tmp_path: Path) -> None:
    assert "id" in failure(written(tmp_path / "x.jsonl", lines({"id": "a" * 5_000, "text": "x"}))).reason


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        load(tmp_path / "nothing")


def test_the_childs_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("PGPASSWORD", "secret")
    assert "secret" not in str(bare_environment())


def test_pptx(tmp_path: Path) -> None:
    import pptx

    show = pptx.Presentation()
    show.core_properties.title = "Onboarding"
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text = "Leave"
    slide.placeholders[1].text = "Thirty days\nPaid"
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    table = show.slides.add_slide(show.slide_layouts[6]).shapes.add_table(2, 2, 0, 0, 9, 9).table
    table.cell(0, 0).text, table.cell(1, 1).text = "a", "d"
    show.save(str(tmp_path / "x.pptx"))
    found = one(tmp_path / "x.pptx")
    first, second = (found.text[place:].split("\n\n\n")[0] for place in found.pages)
    assert found.title == "Onboarding"
    assert first.startswith("# Leave\n\nThirty days\n\nPaid\n\nNotes:\n\nSay it slowly.")
    assert second == "| a |  |\n|  | d |"


def test_xlsx(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Staff"
    for row in (["Name", "Days", "Since"], ["Ada", 30.0, datetime(2024, 1, 2)], ["Bob\nB.", 1.5, None], [None] * 3):
        book.active.append(row)
    book.create_sheet("Numbers").append([1, 2])
    book.save(tmp_path / "x.xlsx")
    found = one(tmp_path / "x.xlsx")
    first, second = found.pages
    assert found.text[first:second].strip() == (
        "# Staff\n\n| Name: Ada | Days: 30 | Since: 2024-01-02 |\n| Name: Bob B. | Days: 1.5 |"
    )
    assert found.text[second:] == "# Numbers\n\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.csv", "name,days\nAda,30\n", "| name: Ada | days: 30 |"),
        ("x.csv", 'name;days\nAda;"3;\n0"\n', "| name: Ada | days: 3; 0 |"),
        ("x.csv", "1,2\n3,4\n", "| 1 | 2 |\n| 3 | 4 |"),
        ("x.csv", "name,days\n", "| name | days |"),
        ("x.csv", "a,b\n1,2,3\n,5\n", "| a: 1 | b: 2 | 3 |\n| b: 5 |"),
        ("x.tsv", "name\tdays, all\nAda\t30\n", "| name: Ada | days, all: 30 |"),
        ("x.csv", "name,days\nÉva,30\n".encode("cp1252"), "| name: Éva | days: 30 |"),
        ("x.csv", "name,days\nAda,30\n".encode("utf-16"), "| name: Ada | days: 30 |"),
    ],
)
def test_tables(tmp_path: Path, name: str, content: str | bytes, text: str) -> None:
    assert one(written(tmp_path / name, content)).text == text


def make_epub(chapters: dict[str, str], title: str = "Whales") -> bytes:
    items = "".join(f'<item id="i{n}" href="{name.replace(" ", "%20")}"/>' for n, name in enumerate(chapters))
    spine = "".join(f'<itemref idref="i{n}"/>' for n in range(len(chapters)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="O/c.opf"/></rootfiles></container>'
        )
        archive.writestr(
            "O/c.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
            f"<dc:title>{title}</dc:title><dc:creator>H. M.</dc:creator></metadata><manifest>{items}</manifest>"
            f"<spine>{spine}</spine></package>",
        )
        for name, text in chapters.items():
            archive.writestr(f"O/{name}", text)
    return out.getvalue()


def test_epub(tmp_path: Path) -> None:
    chapters = {
        "ch 2.xhtml": '<!DOCTYPE html><html><head><title/></head><body><h1>Loomings</h1><p>Call me <a id="x"/>Ishmael.</p>',
        "a.xhtml": "<p>The end.</p>",
    }
    found = one(written(tmp_path / "x.epub", make_epub(chapters)))
    assert (found.title, found.text) == ("Whales", "# Loomings\n\nCall me Ishmael.\n\nThe end.")
    assert found.metadata == {"creator": "H. M."}


MAIL = b"""From: Anna <anna@example.org>
To: bob@example.org
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=
Message-ID: <m1@example.org>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=B

--B
Content-Type: multipart/alternative; boundary=C

--C
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Tsch=FC=DF
--C
Content-Type: text/html

<p>no
--C--
--B
Content-Type: text/csv
Content-Disposition: attachment; filename="../days.csv"

name,days
Ada,30
--B
Content-Type: application/octet-stream
Content-Disposition: attachment; filename=tool.exe

MZ
--B
Content-Type: application/pdf
Content-Disposition: attachment; filename=broken.pdf

%PDF
--B--
"""


def test_mail_with_attachments(tmp_path: Path) -> None:
    body, table, broken = load(written(tmp_path / "x.eml", MAIL))
    assert isinstance(body, Document)
    assert (body.external_id, body.title, body.media_type) == ("x.eml", "Grüße", "message/rfc822")
    assert body.text == "From: Anna <anna@example.org>\nTo: bob@example.org\nSubject: Grüße\n\nTschüß"
    assert body.metadata["attachments"] == ["days.csv", "tool.exe", "broken.pdf"]
    assert isinstance(table, Document)
    assert (table.external_id, table.text, table.media_type) == (
        "x.eml#days.csv",
        "| name: Ada | days: 30 |",
        "text/csv",
    )
    assert isinstance(broken, LoadFailure)
    assert broken.source.endswith("x.eml#broken.pdf")


def test_mail_in_html_only(tmp_path: Path) -> None:
    text = "Subject: x\nContent-Type: text/html; charset=windows-1251\n\n<h1>Отпуск</h1>"
    assert one(written(tmp_path / "x.eml", text.encode("cp1251"))).text == "Subject: x\n\n# Отпуск"


def test_a_mailbox_gives_its_messages(tmp_path: Path) -> None:
    first = b"From a Mon Jan 1\n" + MAIL + b"\n"
    second = b"From b Tue\nSubject: two\nMessage-ID: <m2@x>\n\nA line\n>From the start\nFrom here on\n\n"
    third = b"From c Wed\nSubject: three\n\nNo id.\n"
    found = load(written(tmp_path / "all.mbox", first + second + third))
    documents = [item for item in found if isinstance(item, Document)]
    assert [item.external_id for item in documents] == [
        "all.mbox#m1@example.org",
        "all.mbox#m1@example.org#days.csv",
        "all.mbox#m2@x",
        "all.mbox#message 48",
    ]
    assert documents[2].text == "Subject: two\n\nA line\nFrom the start\nFrom here on"
    assert [item.line for item in found if isinstance(item, LoadFailure)] == [1]


def test_a_message_over_the_limit_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    mails = [b"From a\nSubject: long\n\n" + b"x" * 9_000 + b"\n\n", b"From b\nSubject: short\n\ny\n"]
    first, second = load(written(tmp_path / "x.mbox", b"".join(mails)), max_bytes=2_000)
    assert isinstance(first, LoadFailure)
    assert first.line == 1
    assert isinstance(second, Document)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("x.py", "python"), ("x.ts", "typescript"), ("x.h", "c"), ("x.sql", "sql"), ("x.sh", "shell"), ("x.yml", "yaml")],
)
def test_source_code_is_kept_as_it_is(tmp_path: Path, name: str, media_type: str) -> None:
    code = "---\n# no heading\n\n\n    indented\n"
    found = one(written(tmp_path / name, code))
    assert (found.title, found.text, found.media_type) == (name, code, f"text/x-{media_type}")


ZERO_WIDTH = "a\0b\ufeffc"


@pytest.mark.parametrize("kind", ["md", "txt", "rst", "py", "json", "html", "csv", "eml", "epub", "pdf", "jsonl"])
def test_what_cannot_be_stored_is_taken_out_everywhere(tmp_path: Path, kind: str) -> None:
    """Row E1: the file is stored, clean in every field, and its neighbour with it."""
    text = f"# {ZERO_WIDTH}\n\nSome more text so that this is a text and {ZERO_WIDTH} in it.\n"
    files = {
        "html": f"<title>{ZERO_WIDTH}</title><p>{text}",
        "csv": f"name,{ZERO_WIDTH}\nAda,{ZERO_WIDTH} and some more text\n",
        "eml": f"Subject: {ZERO_WIDTH}\nMessage-ID: <{ZERO_WIDTH}>\n\n{text}",
        "epub": make_epub({"a.xhtml": f"<h1>{ZERO_WIDTH}</h1>"}),
        "pdf": make_pdf([ZERO_WIDTH.replace("\ufeff", "")], "t\0").replace(b"/Title (", b"/Producer (p\0q) /Title ("),
        "jsonl": lines({"id": ZERO_WIDTH, "title": ZERO_WIDTH, "text": text, "metadata": {ZERO_WIDTH: [ZERO_WIDTH]}}),
    }
    written(tmp_path / f"a.{kind}", files.get(kind, text))
    written(tmp_path / "b.txt", "neighbour")
    found, neighbour = load(tmp_path)
    assert isinstance(found, Document), found
    assert isinstance(neighbour, Document)
    shown = json.dumps([found.external_id, found.title, found.text, found.source, found.metadata], ensure_ascii=False)
    assert "\\u0000" not in shown
    assert "\ufeff" not in shown
    assert found.notes or kind == "html"  # an HTML parser itself replaces NUL


def test_a_link_in_a_folder_is_read_from_inside_only(tmp_path: Path) -> None:
    written(tmp_path / "in" / "a.txt", "inside")
    written(tmp_path / "out.txt", "outside")
    (tmp_path / "in" / "b.txt").symlink_to(tmp_path / "out.txt")
    (tmp_path / "in" / "c.txt").symlink_to(tmp_path / "in" / "a.txt")
    a, b, c = load(tmp_path / "in")
    assert isinstance(b, LoadFailure)
    assert "leads out" in b.reason
    assert [item.text for item in (a, c) if isinstance(item, Document)] == ["inside", "inside"]


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.txt")
    assert "no plain file" in failure(tmp_path).reason
