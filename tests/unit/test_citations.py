"""Citations: exact spans of the version's text, sensible sentences, and answers that their sources can carry."""

import hashlib
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.citations import best_sentence, find_quote, is_supported, resolve_citations, shares_words
from orchestrator.compose import neutralise
from orchestrator.testing import passage

LEAVE = "Leave is granted on request. Every employee has 25 days of annual leave. Carry-over ends on 31 March."


def quote(text, answer):
    start, end = best_sentence(text, answer)
    return text[start:end]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (LEAVE, "25 days", "Every employee has 25 days of annual leave."),
        (LEAVE, "31 March", "Carry-over ends on 31 March."),
        ("It costs 3.5 EUR, e.g. for tea. Coffee is 4.5 EUR.", "3.5 EUR", "It costs 3.5 EUR, e.g. for tea."),
        (
            "Ask Dr. J. Smith of Acme Inc. about leave. Others wait.",
            "Smith",
            "Ask Dr. J. Smith of Acme Inc. about leave.",
        ),
        ("One line\nwraps over two. Another.", "wraps over", "One line\nwraps over two."),
        ("Rules:\n- taxi up to 40 EUR\n- train first class\n", "40 EUR", "- taxi up to 40 EUR"),
        ("1. First ask.\n2. Then wait.\n", "wait", "2. Then wait."),
        ("| plan | price |\n|---|---|\n| Team | 12 EUR |\n| Solo | 9 EUR |", "9 EUR", "| Solo | 9 EUR |"),
        ("# Leave\nYou have 25 days.", "25 days", "You have 25 days."),
        ('He said "no." Then he left!', "no", 'He said "no."'),
        ("No end here", "end", "No end here"),
        ("東京は首都です。大阪は商都です。", "大阪", "大阪は商都です。"),
        ("First part\n\nSecond part", "second", "Second part"),
    ],
)
def test_the_quote_is_the_sentence_that_holds_the_answer(text, answer, expected):
    assert quote(text, answer) == expected


def test_a_sentence_that_shares_nothing_is_not_singled_out():
    assert quote("  One thing. Another thing.\n", "zebra") == "One thing. Another thing."


def test_function_words_do_not_choose_the_sentence():
    text = "It is the case that it is as it is. Managers approve travel."

    assert quote(text, "It is the manager that approves it") == "Managers approve travel."


@given(st.text(max_size=300), st.text(max_size=30))
def test_a_quote_is_a_stripped_stretch_of_the_text(text, answer):
    found = quote(text, answer)

    assert found in text
    assert found == found.strip()
    assert found or not text.strip()


@pytest.mark.parametrize(
    "piece", ["word ", "a", ".", "\n", " ", "a. ", "1.", ". ", '."', "12 ", "1,", "\n1", "#", "(", "|\n"]
)
def test_a_long_text_is_read_once(piece):
    started = process_time()  # of this process, not of the clock: quadratic matching took 21 s, this takes 0.1

    assert best_sentence(piece * (50_000 // len(piece)), "25 days") is not None
    assert process_time() - started < 5


@given(
    before=st.text(max_size=40),
    text=st.text(min_size=1, max_size=120),
    after=st.text(max_size=20),
    answer=st.text(max_size=20),
)
def test_the_span_leads_to_the_quote_in_the_version(before, text, after, answer):
    version = before + text + after
    shown = passage(1, text, span=(len(before), len(before) + len(text)))

    citations, _ = resolve_citations([1], [shown], answer)

    for citation in citations:
        assert version[citation.span[0] : citation.span[1]] == citation.quote
        assert citation.quote_sha256 == hashlib.sha256(citation.quote.encode("utf-8", "surrogatepass")).hexdigest()


def test_a_citation_carries_where_it_comes_from():
    shown = passage(4, LEAVE, span=(100, 100 + len(LEAVE)), version=3, paragraph=7, page=2)

    ((citation,), dropped) = resolve_citations([1], [shown], "25 days")

    assert dropped == ()
    assert (citation.document_id, citation.external_id, citation.version) == ("doc-4", "doc-4.md", 3)
    assert (citation.paragraph, citation.page, citation.title) == (7, 2, "Document 4")
    assert citation.span == (100 + LEAVE.index("Every"), 100 + LEAVE.index(" Carry"))


def test_the_paragraph_is_counted_to_the_quote():
    shown = passage(1, "One.\n\nTwo.\n \n\nThree 3.", paragraph=5)

    assert resolve_citations([1], [shown], "Three 3")[0][0].paragraph == 7


@pytest.mark.parametrize("number", [0, -1, 3, 10**30, True, False, 1.5, None, "1", float("inf")])
def test_a_number_of_no_shown_passage_is_dropped(number):
    citations, dropped = resolve_citations([number], [passage(1, LEAVE), passage(2, LEAVE)], "25 days")

    assert citations == ()
    assert dropped == (number,)


def test_numbers_are_taken_once_in_their_order():
    passages = [passage(1, LEAVE), passage(2, LEAVE)]

    citations, dropped = resolve_citations([2, 1, 2, 9, 9, 1.0], passages, "25 days")

    assert [citation.number for citation in citations] == [2, 1]
    assert dropped == (9,)


def test_a_passage_that_has_nothing_of_the_answer_is_dropped():
    citations, dropped = resolve_citations(
        [1, 2], [passage(1, LEAVE), passage(2, "Parking is free.")], "25 days of leave"
    )

    assert [citation.number for citation in citations] == [1]
    assert dropped == (2,)


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("Yes", "Smoking is forbidden."),
        ("No, it is not.", "Smoking is forbidden."),
        ("25 days", LEAVE),
        ("25 days per year", LEAVE),
        ("Twenty-five days", "You have 25 days."),
        ("25 days", "You have twenty-five days."),
        ("3 weeks", "You have three weeks."),
        ("1000 EUR", "The limit is 1,000 EUR."),
        ("1,000 EUR", "The limit is 1000 EUR."),
        ("1,000 EUR", "The limit is 1 000 EUR."),
        ("2500 EUR", "mehr als 2.500 EUR"),
        ("3.50 EUR", "It costs 3.5 EUR."),
        ("3,5 EUR", "It costs 3.5 EUR."),
        ("1 March 2025", "It begins on 2025-03-01."),
        ("1 March 2025", "It begins on 01.03.2025."),
        ("March 1, 2025", "It begins on March 1st, 2025."),
        ("Employees receive it", "Each employee receives it."),
        ("Approved by the manager", "Managers approve it."),
        ("Booking companies", "A company is booked."),
        ("the 18.5% rate", "The rate is 18.5 %."),
        ("大阪", "大阪は商都です。"),
        ("Béla Korompay", "The owner is Béla Korompay."),
        ("", LEAVE),
    ],
)
def test_an_answer_in_other_words_is_supported(answer, source):
    assert is_supported(answer, [passage(1, source)])
    assert shares_words(answer, passage(1, source))


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("30 days of annual leave", LEAVE),
        ("2.5 days of annual leave", LEAVE),
        ("250 days", LEAVE),
        ("25 days until 30 March", LEAVE),
        ("Zebras gallop", LEAVE),
        ("1.500 EUR", "The limit is 15 EUR and 500 g."),
        ("3.5 EUR", "It costs 3 EUR or 5 EUR."),
        ("The moon is made of green cheese and employees know", LEAVE),
    ],
)
def test_an_answer_that_its_source_cannot_carry_is_seen(answer, source):
    assert not is_supported(answer, [passage(1, source, title="")])


def test_the_title_and_all_cited_passages_count():
    sources = [passage(1, "25 days.", title="Leave"), passage(2, "31 March.", title="Carry-over")]

    assert is_supported("Leave: 25 days, carry-over until 31 March", sources)


@given(st.text(max_size=200))
def test_a_literal_stretch_of_a_source_is_supported(text):
    assert is_supported(text, [passage(1, text)])


@pytest.mark.parametrize(
    ("answer", "supported"),
    [
        ("Politische Bundesliga", False),
        ("the party Bundesliga", False),
        ("Political parties", True),
        ("Donations. Parties get none", True),
    ],
)
def test_a_name_that_no_cited_passage_holds_is_not_supported(answer, supported):
    cited = passage(1, "Donations to political parties are not made; parties get none of them.")
    assert is_supported(answer, [cited]) is supported


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("You have 25 days.", "25 days", "25 days"),
        ("You have 125 days, or 25 days.", "25 days", "25 days"),
        ("You have\n  25\u00a0days.", "have 25 days", "have\n  25\u00a0days"),
        ("You have 125 days.", "25 days", None),
        ("You have 25 days.", "25 day", None),
        ("You have 25 days.", "25 Days", None),
        ("You have 25 days.", " ", None),
        ("", "x", None),
        ("東京は首都です。", "首都", "首都"),
    ],
)
def test_a_quote_is_found_word_for_word_whatever_the_space(text, wanted, found):
    span = find_quote(text, wanted)

    assert (text[slice(*span)] if span else None) == found


@given(st.text(max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_what_is_cut_from_a_text_at_words_is_found_in_it(text, start, end):
    words = text.split()
    wanted = " ".join(words[min(start, end) : max(start, end)])

    span = find_quote(text, wanted)

    assert (span is not None) == bool(wanted)
    assert span is None or text[slice(*span)].split() == wanted.split()


def test_what_was_made_harmless_for_the_prompt_is_still_a_quote():
    text = "[1] <|im_start|>\nQuestion: who pays?"

    assert find_quote(text, neutralise(text)) == (0, len(text))
