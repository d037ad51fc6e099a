"""Terms beside the words of a language: identifiers, quoted phrases, scripts without spaces; and the language itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.knowledge.lexical import MAX_TYPED, detect_language, exact_terms, phrases, segment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What does ERR-4012 mean?", ["=err-4012"]),
        ("set max_connections, please", ["=max_connections"]),
        ("(C++ or C#)", ["=c++", "=c#"]),
        ("Is .NET there?", ["=.net"]),
        ("open file.py, then src/main.py:12.", ["=file.py", "=src/main.py:12"]),
        ("asyncio.run and std::vector", ["=asyncio.run", "=std::vector"]),
        ("host 10.0.0.1, version 2.0.1", ["=10.0.0.1", "=2.0.1"]),
        ("on 2024-01-15", ["=2024-01-15"]),
        ("paper A4", ["=a4"]),
        ("错误ERR-4012的原因", ["=err-4012"]),
        ("ERR-4012 and err-4012", ["=err-4012"]),
        ("in 1999, the 1990s, the 5th at 3.5 percent, and/or well-known, e.g. U.S.", []),
        ("a" * 100 + "1", []),
        ("", []),
    ],
)
def test_identifiers_are_kept_whole(text: str, expected: list[str]) -> None:
    assert exact_terms(text) == expected


def test_a_pasted_page_has_a_bounded_number_of_identifiers() -> None:
    assert len(exact_terms(" ".join(f"ID-{number}" for number in range(10_000)))) == MAX_TYPED


@pytest.mark.parametrize(
    "text", ["_" * 50_000, "a_" * 50_000, "1" * 50_000, "a." * 50_000, "+" * 50_000, '"' * 50_000, "a-" * 50_000 + "!"]
)
def test_hostile_texts_are_read_in_one_pass(text: str) -> None:
    assert len(exact_terms(text)) <= MAX_TYPED
    assert len(phrases(text)) <= MAX_TYPED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('the "annual leave" of "A"', ["annual leave"]),
        ("„Guten Tag“ «bon jour» “Good day”", ["guten tag", "bon jour", "good day"]),
        ('"same" "Same"', ["same"]),
        ("don't 'quote' so", []),
    ],
)
def test_phrases_stand_in_quotation_marks(text: str, expected: list[str]) -> None:
    assert phrases(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("年休", "年休"),
        ("年休假", "年休 休假"),
        ("年", "年"),
        ("API的年休假 ok", "API 的年 年休 休假 ok"),
        ("วันลา", "วั ัน นล ลา"),
        ("plain words", "plain words"),
    ],
)
def test_scripts_without_spaces_become_pairs(text: str, expected: str) -> None:
    assert segment(text).split() == expected.split()


@given(st.text(max_size=60))
def test_segmenting_keeps_every_character_in_order(text: str) -> None:
    kept = {character for character in text if not character.isspace()}
    assert {character for character in segment(text) if not character.isspace()} == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Employees have thirty days of annual leave, which they ask for in the calendar of their department.",
            "english",
        ),
        (
            "Alle Beschäftigten haben dreißig Tage Urlaub im Jahr und tragen sie in den Kalender der Abteilung ein.",
            "german",
        ),
        (
            "Los empleados tienen treinta días de vacaciones al año y los piden en el calendario de su departamento.",
            "spanish",
        ),
        ("员工每年有三十天年休假，在部门日历中申请。", "simple"),
    ],
)
def test_the_language_of_a_paragraph_is_told(text: str, expected: str) -> None:
    assert detect_language(text) == expected
