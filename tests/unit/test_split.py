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
    long = MARKDOWN.replace("thirty days.", "thirty days. " * 40)
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
    [("text/markdown", "One\n===\n\nTwo\n---\n\nbody"), ("text/x-rst", "One\n===\n\nTwo\n~~~\n\nbody")],
)
def test_underlined_headings(media_type: str, text: str) -> None:
    chunks = split(document(text, media_type), 12)
    assert chunks[-1].text == "body"
    assert chunks[-1].heading_path == ("One", "Two")


def test_a_title_that_is_the_first_heading_is_indexed_once() -> None:
    chunk = split(Document("d", "Leave", "# Leave\n\nDays.", "test", "text/markdown"))[0]
    assert chunk.indexed == "# Leave\n\nDays."


def test_lists_are_cut_between_lines() -> None:
    text = "\n".join(f"- point {number} with some words. And more" for number in range(60))
    assert all(chunk.text.startswith("- point") for chunk in split(document(text)))


def test_long_paragraphs_are_cut_at_sentences() -> None:
    text = "This is one sentence of a long paragraph. " * 100
    assert all(chunk.text.endswith(".") for chunk in split(document(text)))


def test_chinese_is_cut_at_its_full_stops() -> None:
    text = "这是一个很长的句子没有空格。" * 200
    assert all(chunk.text.endswith("。") for chunk in split(document(text, "text/plain")))


def test_pages_are_those_that_chunks_start_on() -> None:
    text = "a" * 900 + "\n\n" + "b" * 900 + "\n\n" + "c" * 900
    assert [chunk.page for chunk in split(document(text, "application/pdf", pages=(0, 902, 1804)))] == [1, 2, 3]


@pytest.mark.parametrize("unit", ["x", "word ", " ", ". ", "\n", "- a\n", "#"])
def test_work_grows_linearly_with_length(unit: str) -> None:
    text = unit * (300_000 // len(unit)) + "x"  # at quadratic cost this would take minutes
    chunks = split(document(text))
    assert chunks[-1].span[1] == len(text)
    assert max(len(chunk.text) for chunk in chunks) <= LIMIT


def test_a_blank_text_has_no_chunks() -> None:
    assert split(document(" \n\n\t \n")) == []
