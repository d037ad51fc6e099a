"""Splitting: exact spans, structure, limits."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.knowledge.split import LIMIT, split
from orchestrator.types import Document

MARKDOWN = """# Leave

Everyone has thirty days.

## Parents

- one
- two

```
# not a heading

code
```

Last words.
"""

PIECES = st.sampled_from(
    [
        "\n",
        "\n\n",
        " ",
        "# ",
        "## a\n",
        "- x\n",
        "```\n",
        "| a | b |\n",
        "word ",
        "End. ",
        "é\u0301",
        "🦓",
        "\u2028",
        "\x0b",
        "\xa0",
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=20), st.text("ab .", max_size=60)), max_size=40).map("".join)


def document(text: str, media_type: str = "text/markdown", **more: object) -> Document:
    return Document("d", "Title", text, "test", media_type, **more)  # type: ignore[arg-type]


@given(TEXTS, st.sampled_from(["text/markdown", "text/plain", "text/x-rst", "text/html"]), st.integers(5, 80))
@settings(max_examples=120, deadline=None)
def test_chunks_are_exact_ordered_disjoint_and_complete(text: str, media_type: str, limit: int) -> None:
    chunks = split(document(text, media_type), limit)

    assert [text[slice(*chunk.span)] for chunk in chunks] == [chunk.text for chunk in chunks]
    bounds = [place for chunk in chunks for place in chunk.span]
    assert bounds == sorted(bounds)
    assert all(0 < len(chunk.text) <= limit for chunk in chunks)
    gaps = [text[a:b] for a, b in zip([0, *bounds[1::2]], [*bounds[::2], len(text)], strict=True)]
    assert "".join(gaps).strip() == ""
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_paragraphs_are_counted_by_blank_lines(text: str) -> None:
    paragraphs: list[int] = []  # offset at which each one starts
    offset, blank = 0, True
    for line in text.split("\n"):
        if line.strip() and blank:
            paragraphs.append(offset + len(line) - len(line.lstrip()))
        blank = not line.strip()
        offset += len(line) + 1
    for chunk in split(document(text, "text/plain"), 30):
        assert paragraphs[chunk.paragraph] <= chunk.span[0]
        assert chunk.paragraph + 1 == len(paragraphs) or paragraphs[chunk.paragraph + 1] > chunk.span[0]


def test_sections_carry_their_headings() -> None:
    long = MARKDOWN.replace("thirty days.", "thirty days. " * 20)
    chunks = split(document(long))
    assert [chunk.heading_path for chunk in chunks] == [("Leave",), ("Leave", "Parents")]
    assert chunks[0].text.startswith("# Leave")
    assert chunks[1].text.startswith("## Parents")
    assert chunks[1].indexed == "Title > Leave\n\n" + chunks[1].text
    assert chunks[1].sha256 == hashlib.sha256(chunks[1].indexed.encode()).hexdigest()


def test_small_sections_share_a_chunk() -> None:
    chunks = split(document(MARKDOWN))
    assert [chunk.text for chunk in chunks] == [MARKDOWN.strip()]


def test_code_is_not_read_as_structure() -> None:
    assert not any("not a heading" in chunk.heading_path for chunk in split(document(MARKDOWN), 40))


def test_plain_text_has_no_headings() -> None:
    chunks = split(document("# a comment\n\ntext", "text/plain"))
    assert chunks[0].heading_path == ()
    assert chunks[0].indexed == "Title\n\n# a comment\n\ntext"


@pytest.mark.parametrize(
    ("media_type", "text"),
    [
        ("text/markdown", "# One\n\n## Two\n\nbody"),
        ("text/markdown", "One\n===\n\nTwo\n---\n\nbody"),
        ("text/x-rst", "One\n===\n\nTwo\n~~~\n\nbody"),
        ("text/markdown", "= One =\n\n== Two ==\n\nbody"),
        ("text/markdown", " = One = \n \n = = Two = = \n \n body"),
    ],
)
def test_headings_of_each_markup(media_type: str, text: str) -> None:
    chunk = split(document(text, media_type))[-1]
    assert chunk.text.endswith("body")
    assert chunk.heading_path == ("One", "Two")


@pytest.mark.parametrize("text", ["a = b = c", "= x", "x =", "== a =", "===", "if a == b == c:"])
def test_an_equation_is_no_heading(text: str) -> None:
    assert split(document(text))[0].heading_path == ()


def test_a_title_that_is_the_first_heading_is_indexed_once() -> None:
    chunk = split(Document("d", "Leave", "# Leave\n\nDays.", "test", "text/markdown"))[0]
    assert chunk.indexed == "# Leave\n\nDays."


def test_paragraphs_are_chunks_of_their_own_and_short_ones_take_the_next() -> None:
    long, short = "A sentence of a paragraph that has enough to say. " * 4, "Good evening."
    chunks = split(document(f"{long}\n\n{long}\n\n{short}\n\n{long}", "text/plain"))
    assert [chunk.text for chunk in chunks] == [long.strip(), long.strip(), f"{short}\n\n{long.strip()}"]


def test_a_list_stays_with_its_items_and_the_line_that_introduces_it() -> None:
    items = "\n\n".join(f"- item {number} of a list whose items stand apart from each other" for number in range(8))
    before = "What there is to say before a list comes up takes more than a hundred characters. " * 2
    chunks = split(
        document(
            f"{before}\n\nThe steps for everyone who takes part, in the order in which they are to be taken:\n\n{items}"
        )
    )
    assert [chunk.text[:9] for chunk in chunks] == ["What ther", "The steps"]
    assert chunks[1].text.endswith("- item 7 of a list whose items stand apart from each other")


def test_a_list_right_under_a_sentence_is_a_list() -> None:
    text = "Steps:\n" + "\n".join(f"- point {number} with some words. And more" for number in range(60))
    assert all(chunk.text.startswith("- point") for chunk in split(document(text))[1:])


@pytest.mark.parametrize("lines", [1, 2, 3, 4])
def test_lists_are_cut_between_items(lines: int) -> None:
    item = "- point with some words. And" + "\n  more in a further line" * lines
    assert all(chunk.text.startswith("- point") for chunk in split(document("\n".join([item] * 60))))


def test_code_and_tables_that_fit_are_whole() -> None:
    code = "```\n" + "\n".join(f"line_{number} = 1. + 2." for number in range(12)) + "\n\nend\n```"
    table = "| a | b |\n|---|---|\n" + "\n".join(f"| x{number} | y |" for number in range(12))
    prose = "Words that stand between. " * 20
    chunks = split(document(f"{prose}\n\n{code}\n\n{prose}\n\n{table}"))
    assert code in [chunk.text for chunk in chunks]
    assert table in [chunk.text for chunk in chunks]


def test_later_parts_of_a_table_are_searched_with_its_header() -> None:
    table = "| Name | Days |\n|---|---|\n" + "\n".join(f"| row {number} | {number} |" for number in range(200))
    chunks = split(document(table))
    assert len(chunks) > 2
    assert all(chunk.context == "Title\n| Name | Days |" for chunk in chunks[1:])
    assert chunks[0].context == "Title"
    assert all("Name" not in chunk.text for chunk in chunks[1:])


def test_a_heading_is_not_alone_when_its_paragraph_is_cut() -> None:
    chunks = split(document("# A heading over it that says more\n\n" + "One more sentence of a paragraph. " * 27))
    assert chunks[0].text.startswith("# A heading over it that says more\n\nOne more")
    assert len(chunks) == 2


def test_long_paragraphs_are_cut_at_sentences() -> None:
    text = "This is one sentence of a long paragraph. " * 100
    assert all(chunk.text.endswith(".") for chunk in split(document(text)))


def test_chinese_is_cut_at_its_full_stops() -> None:
    text = "这是一个很长的句子没有空格。" * 200
    assert all(chunk.text.endswith("。") for chunk in split(document(text, "text/plain")))


@pytest.mark.parametrize(
    ("sample", "at_most"),
    [
        ("汉字没有空格。", 200),
        ("Слово за словом. ", 250),
        ("| 12 | 3.4 ", 500),
        ("Wörter einer anderen Sprache. ", 667),
        ("The words of a language that it knows. ", 1_000),
    ],
)
def test_what_takes_more_word_pieces_takes_fewer_characters(sample: str, at_most: int) -> None:
    chunks = split(document(sample * 400, "text/plain"))
    assert max(len(chunk.text) for chunk in chunks) <= at_most
    assert max(len(chunk.text) for chunk in chunks) > at_most / 2


def test_a_title_without_end_leaves_room_for_the_text() -> None:
    chunk = split(Document("d", "汉" * 5_000, "text", "test"))[0]
    assert len(chunk.context) <= 50


def test_pages_are_those_that_chunks_start_on() -> None:
    text = "a" * 500 + "\n\n" + "b" * 500 + "\n\n" + "c" * 500
    assert [chunk.page for chunk in split(document(text, "application/pdf", pages=(0, 502, 1004)))] == [1, 2, 3]


@pytest.mark.parametrize("unit", ["x", "word ", " ", ". ", "\n", "- a\n", "#"])
def test_work_grows_linearly_with_length(unit: str) -> None:
    text = unit * (300_000 // len(unit)) + "x"  # at quadratic cost this would take minutes
    chunks = split(document(text))
    assert chunks[-1].span[1] == len(text)
    assert max(len(chunk.text) for chunk in chunks) <= LIMIT


def test_a_blank_text_has_no_chunks() -> None:
    assert split(document(" \n\n\t \n")) == []


CODE = '''"""A module."""
import os

# Says how many days
# an employee gets.
@cache
def days(years):
    if years > 5:
        return 30

    return 28


class Leave:
    def ask(self):
        """Asks, with a # in it."""
        return [
            1,
        ]
'''


def test_code_is_cut_between_functions_with_their_comments() -> None:
    padded = CODE.replace("return 28", "return 28  # " + "x" * 200).replace("1,\n", "1,  # " + "y" * 200 + "\n")
    chunks = split(Document("a", "a.py", padded, "a.py", "text/x-python"), limit=400)
    (function,) = [chunk.text for chunk in chunks if "def days" in chunk.text]
    (asking,) = [chunk.text for chunk in chunks if "class Leave" in chunk.text]
    assert "# Says how many days" in function
    assert "return 28" in function
    assert asking.startswith("class Leave")
    assert asking.endswith("]")
    assert not any(chunk.heading_path for chunk in chunks)


def test_a_comment_in_a_mail_is_no_heading() -> None:
    (chunk,) = split(Document("m", "", "# not a heading\n\nBody of the mail.", "m.eml", "message/rfc822"))
    assert chunk.heading_path == ()
