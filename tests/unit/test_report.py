"""Reports in Markdown: what the grammar writes is what the reader takes, and nothing else is."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract import Contract
from orchestrator.errors import ContractError, SettingsError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder

BRIEF = load_catalogue(folder("prompts")).contract("brief")
GOOD = "## Summary\nAll is well. [1] [2]\n\n## Findings\n- One [1]\n- Two [2]\n\n## Open questions\n- Why?\n- When?"
WORDS = st.text(
    st.characters(exclude_characters="[]\x7f\x85\u2028\u2029", exclude_categories=("Cs", "Cc")), max_size=12
)
LINE = WORDS.map(lambda text: "x" + " ".join(text.split(" "))).map(lambda text: re.sub(" +", " ", text).strip())


def file(**changed):
    sections = [{"heading": "Summary", "words": 5}, {"heading": "Notes", "kind": "list", "lines": 2, "citations": 0}]
    return json.dumps({"form": "markdown", "sections": sections, "refusal": "No.", **changed})


def test_a_report_is_read_into_an_object_and_written_back():
    data = BRIEF.parse_output(GOOD)

    assert data["report"]["Findings"] == [{"citations": [1], "text": "One"}, {"citations": [2], "text": "Two"}]
    assert data["report"]["Open questions"] == [{"citations": [], "text": "Why?"}, {"citations": [], "text": "When?"}]
    assert BRIEF.dump(data) == BRIEF.render(data) == GOOD
    assert not BRIEF.is_refusal(data)


@given(LINE, st.lists(LINE, min_size=1, max_size=4), st.lists(st.integers(1, 99), min_size=1, max_size=2))
def test_what_is_written_is_read_back(summary, findings, numbers):
    lines = [{"citations": numbers, "text": text} for text in findings]
    question = [{"citations": [], "text": "Why?"}]
    report = {"Summary": [{"citations": numbers, "text": summary}], "Findings": lines, "Open questions": question}
    data = {"answerable": True, "report": report}

    assert BRIEF.parse_output(BRIEF.dump(data)) == data


def test_the_refusal_is_one_line():
    data = BRIEF.parse_output(BRIEF.refusal)

    assert BRIEF.is_refusal(data)
    assert BRIEF.dump(data) == BRIEF.render(data) == BRIEF.refusal


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("## Summary\n", "# Summary\n"),
        ("## Summary\n", ""),
        ("## Summary\n", "Sure!\n\n## Summary\n"),
        ("## Summary\n", " ## Summary\n"),
        ("## Findings", "## Results"),
        (" [1] [2]", ""),
        (" [1] [2]", "[1]"),
        (" [1] [2]", " [1][2]"),
        (" [1] [2]", " [0]"),
        (" [1] [2]", " [100]"),
        (" [1] [2]", " [1] [2] [3] [4]"),
        (" [1] [2]", " [1] and more"),
        ("All is", "All [1] is"),
        ("All is", "All  is"),
        ("All is", "- All is"),
        ("All is", "# All is"),
        ("All", "x " * 60 + "All"),
        ("- One [1]", "One [1]"),
        ("- One [1]", "* One [1]"),
        ("- One [1]", "-  One [1]"),
        ("- One [1]", "- One [1] "),
        ("- One [1]", "- [1]"),
        ("- One [1]", "- One [1]\n" * 4 + "- One [1]"),
        ("- One [1]\n- Two [2]", ""),
        ("- Why?", "- Why? [1]"),
        ("- Why?", "- Why\r?"),
        ("- Why?", "- Why\x00?"),
        ("\n\n## Open", "\n## Open"),
        ("\n\n## Open", "\n\n\n## Open"),
        ("- When?", "- When?\n\n## More\nx"),
        (GOOD, ""),
        (GOOD, "{}"),
        (GOOD, BRIEF.refusal + " "),
        (GOOD, BRIEF.refusal + "\n\n" + GOOD),
    ],
)  # fmt: skip
def test_a_text_that_breaks_the_form_is_refused(good, bad):
    assert good in GOOD

    with pytest.raises(ContractError, match="brief"):
        BRIEF.parse_output(GOOD.replace(good, bad, 1))


def test_a_line_without_its_source_says_so():
    data = BRIEF.parse_output(GOOD)
    data["report"]["Findings"][0]["citations"] = []

    assert "- One [no source]\n- Two [2]" in BRIEF.render(data)


def test_the_grammar_names_only_what_was_shown():
    grammar = BRIEF.engine_grammar(2)

    assert 'number ::= " [1]" | " [2]"\n' in grammar
    assert "number{1,3}" in grammar
    assert BRIEF.engine_schema(2) is None
    assert BRIEF.engine_grammar(0) == f'root ::= "{BRIEF.refusal}"'


def test_a_report_may_cite_nothing_at_all():
    contract = Contract.parse("notes", json.dumps({"form": "markdown", "sections": [{"heading": "A", "citations": 0}]}))

    assert contract.parse_output("## A\nx y")["report"] == {"A": [{"citations": [], "text": "x y"}]}
    assert "number" not in contract.engine_grammar(0)
    assert contract.places == ()


def test_an_object_that_is_no_report_is_not_written():
    with pytest.raises(ContractError, match="no report"):
        BRIEF.dump({"answerable": True, "report": {}})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sections": []}, "sections"),
        ({"sections": [{"heading": "A"}] * 13}, "sections"),
        ({"sections": [{"heading": "A"}, {"heading": "A"}]}, "one heading"),
        ({"sections": [{"heading": "A", "more": 1}]}, "section"),
        ({"sections": [{"heading": 'A"\nroot ::= "x'}]}, "heading"),
        ({"sections": [{"heading": "A "}]}, "heading"),
        ({"sections": [{"heading": "A", "words": 10**6}]}, "words"),
        ({"sections": [{"heading": "A", "words": True}]}, "words"),
        ({"sections": [{"heading": "A", "kind": "list", "lines": 21}]}, "lines"),
        ({"sections": [{"heading": "A", "lines": 2}]}, "kind"),
        ({"sections": [{"heading": "A", "kind": "table"}]}, "kind"),
        ({"sections": [{"heading": "A", "citations": 6}]}, "citations"),
        ({"refusal": ""}, "refusal"),
        ({"refusal": "No.\nNo."}, "refusal"),
        ({"refusal": "## Summary"}, "refusal"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"no_adapter": 5}, "no_adapter"),
    ],
)
def test_a_wrong_report_file_is_refused(changed, said):
    assert Contract.parse("mine", file()).form == "markdown"

    with pytest.raises(SettingsError, match=f"'mine'.*{said}"):
        Contract.parse("mine", file(**changed))


def test_a_refusal_with_quotes_is_a_literal_of_the_grammar():
    contract = Contract.parse("mine", file(refusal='Say "no" \\ stop'))

    assert contract.engine_grammar(1).startswith('root ::= "Say \\"no\\" \\\\ stop" | report\n')
