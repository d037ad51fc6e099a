"""A report's page without a browser: its numbers, its escaping, its policy, what it refuses, and that it is the same each time."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.drilldown import write_questions
from orchestrator.evaluation.items import Gold, Item, ItemSet, Outcome
from orchestrator.evaluation.markup import join
from orchestrator.evaluation.page import make_report, render, write_page
from orchestrator.evaluation.runs import Run
from orchestrator.evaluation.sections import Report, causes_table, provenance_tables, top
from tests.pages import as_run, item, make_diagnosis, make_run, passage

RUN = make_run()
BEFORE = make_run(name="monday", skill=0.5)
WHOLE = make_report(RUN, before=BEFORE, diagnosis=make_diagnosis(RUN))
HOSTILE = (
    "</script><script>window.hacked=1</script><!-- <img src=x onerror=alert(1)> \x00\x1b[31m \u202eabc %%title%% & \"'"
)


def written(run: Run, texts: dict | None = None, *, diagnosis: Diagnosis | None = None) -> dict:
    """The questions as the page holds them, without its plots."""
    return json.loads(write_questions(run, texts or {}, None, None, diagnosis))


@pytest.fixture(scope="module")
def page() -> str:
    """The page of a run, an earlier one and a diagnosis; drawn once, as plots take half a second."""
    return render(WHOLE).html


@pytest.fixture(scope="module")
def hostile() -> str:
    """A page whose every text tries to break out of it."""
    return render(make_report(hostile_run(), before=hostile_run())).html


@pytest.fixture(scope="module")
def small() -> Report:
    """A report whose page is quickly drawn."""
    asked = Item("a", "Who?", ("Ann",))
    return make_report(as_run(ItemSet("s", (asked,)), {"a": Outcome("a", "Ann")}))


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._inside, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def plain(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<script")[0]))


def hostile_run() -> Run:
    asked = replace(
        item(0), question=HOSTILE, answers=(HOSTILE,), tags=(HOSTILE,), route=HOSTILE, gold=(Gold(HOSTILE, quote=HOSTILE),)
    )  # fmt: skip
    done = Outcome(
        asked.id, HOSTILE, cited=((HOSTILE, 1, HOSTILE),), passages=(passage(1, HOSTILE, document=HOSTILE),), route=HOSTILE,
        adapter=HOSTILE, flags=(HOSTILE,), sufficiency=0.5, timings_ms={HOSTILE: 1.0},
    )  # fmt: skip
    return as_run(
        ItemSet(HOSTILE, (asked, item(1))), {asked.id: done, "q0001": Outcome("q0001", error=HOSTILE)}, name=HOSTILE
    )


# numbers


def test_the_top_says_accuracy_with_its_interval_and_the_paired_difference(page: str):
    correct, change = WHOLE.summary.measures["correct"], WHOLE.comparison.correct
    text = plain(page)

    assert f"{correct.value:.1%} of 61 questions are answered correctly" in text
    assert f"95% interval: {correct.low:.1%} to {correct.high:.1%}" in text
    assert 0 < correct.low < correct.value < correct.high < 1
    assert f"Better than 'monday': {100 * change.value:+.1f} points" in text
    assert f"(95%: {100 * change.low:+.1f} to {100 * change.high:+.1f}, p = {change.p:.4f})" in text
    assert "lost, of the same 61." in text
    assert change.value == pytest.approx(correct.value - WHOLE.earlier.measures["correct"].value)
    assert "could not be read and count as wrong" in text


def test_two_runs_alike_are_no_gain_and_the_page_says_what_they_would_show():
    alike = make_report(RUN, before=replace(RUN, info=replace(RUN.info, name="monday")))
    text = plain(join(top(alike)))

    assert "No significant difference from 'monday': +0.0 points" in text
    assert "these runs would show one of" in text


def test_a_loss_is_called_worse():
    assert "Worse than 'tuesday'" in plain(join(top(make_report(BEFORE, before=RUN))))


def test_the_tables_say_every_measure_and_slice_with_its_interval(page: str):
    text = plain(page)
    figures = [*WHOLE.summary.measures.values(), *WHOLE.summary.slices.values(), WHOLE.summary.refusal_recall]

    assert {f"{each.low:.1%} to {each.high:.1%}" for each in figures} - set(
        re.findall(r"[\d.]+% to [\d.]+%", text)
    ) == set()
    assert {"tag:leave", "route:grounded", "unanswerable"} <= set(re.findall(r"[\w:]+", text))


def test_provenance_names_the_set_its_hash_the_corpus_the_stamp_and_the_dates(page: str):
    text = plain(page)

    assert RUN.info.sha256 in text
    assert "c" * 64 in text
    assert "d" * 64 in text
    assert "2026-03-02 09:07:00" in text
    assert "adapters.cited-answer" in text
    assert "monday-digest" in text


def test_provenance_says_how_many_documents_changed_between_the_runs():
    moved = replace(BEFORE, set=replace(BEFORE.set, snapshot={"leave.md": "b" * 64, "old.md": "a"}))

    assert "0 added, 1 removed, 1 changed" in plain(provenance_tables(make_report(RUN, before=moved)))
    assert "Documents since" not in plain(provenance_tables(make_report(RUN, before=BEFORE)))


def test_every_question_comes_with_what_was_shown_and_the_commands_of_its_causes(page: str):
    data = data_of(page)
    failed = next(each for each in data["questions"] if each["causes"] == ["not_retrieved"])
    outcome = RUN.outcomes[failed["id"]]

    assert [each["id"] for each in data["questions"]] == [*(each.id for each in RUN.set.items), "row 61"]
    assert [each["now"]["state"] for each in data["questions"]].count("right") == sum(
        s.correct for s in RUN.scores.values()
    )
    assert failed["now"]["reason"] == RUN.scores[failed["id"]].reason
    assert [data["passages"][each["at"]]["document"] for each in failed["now"]["passages"]] == [
        each.external_id for each in outcome.passages
    ]
    assert failed["commands"] == ["orchestrator eval tune handbook.jsonl --collection handbook --apply"]
    assert {each["move"] for each in data["questions"][:-1]} == {"gained", "lost", ""} - (
        set() if WHOLE.comparison.moved("lost") else {"lost"}
    )


def test_texts_are_shown_by_their_place_and_once_for_all_questions():
    one = passage(1)
    asked = ItemSet("s", (item(0), item(1)))
    run = as_run(asked, {each.id: Outcome(each.id, "x", passages=(one,)) for each in asked.items})
    place = (one.document_id, one.version, one.chunk_id, 0, 0)

    found = written(run, {place: "Rule 1 of travel gives 11 days."})
    lost = written(run)

    assert [each["text"] for each in found["passages"]] == ["Rule 1 of travel gives 11 days."]
    assert [each["now"]["passages"][0]["holds"] for each in found["questions"]] == [False, True]
    assert lost["passages"][0]["text"] is None


def test_a_command_holds_the_question_as_a_shell_reads_it():
    asked = replace(item(0), question="Who's there; rm -rf $HOME?\x00")
    run = as_run(ItemSet("s", (asked,)), {asked.id: Outcome(asked.id, "x")})
    found = Diagnosis.from_json(make_diagnosis(run).to_json().replace("knowledge_missing", "false_refusal"))
    found = replace(found, bars=(replace(found.bars[0], command="orchestrator search QUESTION --explain"),))

    (question,) = written(run, diagnosis=found)["questions"]

    assert question["commands"] == ["""orchestrator search 'Who'"'"'s there; rm -rf $HOME?⟨U+0000⟩' --explain"""]


# security


def test_no_text_ends_the_data_or_begins_an_element(hostile: str, page: str):
    found, clean = Reader(hostile), Reader(page)

    assert hostile.count("<script") == hostile.count("</script") == 2
    assert "<!--" not in hostile
    assert not [char for char in hostile if ord(char) < 32 and char != "\n"]
    assert "\u202e" not in hostile
    assert [each.get("src") for each in found.all("script")] == [None, None]
    assert found.all("img") == []
    assert not [
        (tag, name) for tag, given in found.elements for name in given if name.startswith("on") or name == "style"
    ]
    assert {tag for tag, _ in found.elements} - {tag for tag, _ in clean.elements} == set()
    shown = HOSTILE.replace("\x00", "⟨U+0000⟩").replace("\x1b", "⟨U+001B⟩").replace("\u202e", "⟨U+202E⟩")
    assert data_of(hostile)["questions"][0]["question"] == shown
    assert found.texts["h1"] == ["50.0% of 2 questions are answered correctly"]


def test_a_text_that_names_a_mark_of_the_template_stays_a_text(hostile: str):
    assert data_of(hostile)["questions"][0]["question"].count("%%title%%") == 1


def test_the_policy_lets_run_this_script_and_this_style_sheet_and_nothing_else(page: str):
    (policy,) = [
        each["content"] for each in Reader(page).all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    ]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    hashed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]

    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert (rules["style-src"], rules["script-src"]) == (f"'sha256-{hashed[0]}'", f"'sha256-{hashed[1]}'")
    assert (rules["img-src"], rules["base-uri"], rules["form-action"]) == ("data:", "'none'", "'none'")
    assert (rules["require-trusted-types-for"], rules["trusted-types"]) == ("'script'", "'none'")
    assert "unsafe" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_the_page_asks_for_nothing_outside_itself(page: str):
    addresses = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page)

    assert [each for each in addresses if not each.startswith(("#", "data:,"))] == []
    assert "url(" not in re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_the_script_never_makes_markup_of_text(page: str):
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]

    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|DOMParser", script
    )


# the file


def test_the_same_run_gives_the_same_bytes_in_another_process(page: str):
    code = (
        "from tests.unit.test_page import WHOLE, render; import hashlib; "
        "print(hashlib.sha256(render(WHOLE).html.encode()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root), "TZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root, check=True
    )

    assert done.stdout.strip() == hashlib.sha256(page.encode()).hexdigest()


def test_the_file_is_written_whole_and_its_figures_are_told(tmp_path: Path, page: str):
    found = write_page(WHOLE, tmp_path / "report.html")

    assert (tmp_path / "report.html").read_text("utf-8") == page
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert (found["file"], found["bytes"]) == (tmp_path / "report.html", len(page.encode()))
    assert found["accuracy"] == WHOLE.summary.measures["correct"]
    assert (found["verdict"], found["difference"]) == ("gain", WHOLE.comparison.correct)
    assert set(found["plots"]) == {"measures", "reliability", "waterfall", "latency", "refusals", "routes"}


def test_a_failure_to_write_leaves_what_was_there(tmp_path: Path, small: Report, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(os, "replace", fail)

    with pytest.raises(InputError, match="No space left on device; give another place with --out"):
        write_page(small, tmp_path / "report.html")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"report.html": "old"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, small: Report):
    with pytest.raises(InputError, match=r"cannot write .*none/report.html: No such file"):
        write_page(small, tmp_path / "none" / "report.html")


# what is refused


def test_runs_over_other_questions_are_not_compared():
    with pytest.raises(InputError, match="their questions differ"):
        make_report(RUN, before=make_run(59))


def test_a_run_without_an_answer_is_no_report():
    empty = as_run(RUN.set, {})

    with pytest.raises(InputError, match="has no answer yet"):
        make_report(empty)
    with pytest.raises(InputError, match="run_monday has no answer yet"):
        make_report(RUN, before=replace(empty, info=replace(empty.info, id="run_monday")))


@pytest.mark.parametrize("other", [make_run(name="monday", skill=0.5), make_run(59), make_run(faults=2)])
def test_a_diagnosis_of_another_run_is_refused(other: Run):
    with pytest.raises(InputError, match="this diagnosis is of another run"):
        make_report(RUN, diagnosis=make_diagnosis(other))


def test_questions_that_came_right_by_themselves_belong_to_the_diagnosis():
    found = make_diagnosis(RUN)
    name = next(iter(found.causes))
    steady = replace(found, causes={key: each for key, each in found.causes.items() if key != name}, unsteady=(name,))

    assert "1 came right when asked again" in plain(causes_table(make_report(RUN, diagnosis=steady).diagnosis))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(InputError, match=r"hybrid-orchestrator\[eval\]"):
        render(WHOLE)


def test_a_run_that_says_little_gives_a_page_that_says_so(small: Report):
    page = render(small)

    assert page.plots == ("measures", "refusals")
    text = plain(page.html)
    assert "No outcome carries an estimate of the search." in text
    assert "No diagnosis was given" in text
    assert "No question of this set names a route." in text
    assert "Nothing was wrong." in text
