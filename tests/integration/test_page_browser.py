"""A report's page in a real browser, from a file and without a network: it shows, filters, opens, and runs nothing of its texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.evaluation.items import Gold, ItemSet, Outcome
from orchestrator.evaluation.markup import shown
from orchestrator.evaluation.page import make_report, write_page
from tests.pages import as_run, item, make_diagnosis, make_run, passage

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)
webdriver = pytest.importorskip("selenium.webdriver")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--force-prefers-reduced-motion", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip
PLOTS = ("measures", "reliability", "waterfall", "latency", "refusals", "routes")
RUN = make_run(80)
BEFORE = make_run(80, name="monday", skill=0.5, seed=3)
BIDI = "\u202e\u2066\x00\x07\x1b[31m\u2028"
ATTACK = (
    '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2"><!--'
    f"{BIDI}' onfocus=window.hacked=3 autofocus"
)
Browser = Any


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all pages; it has nothing to download and tells nobody anything."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SE_AVOID_STATS", "true"), ("SE_OFFLINE", "true"), ("NO_PROXY", "localhost,127.0.0.1")):
            patch.setenv(name, value)
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def open_page(browser: Browser, path: Path) -> Browser:
    """Opens a page from the disk; what the console says from now on is its own."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())
    return browser


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with an earlier one and a diagnosis."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(make_report(RUN, before=BEFORE, diagnosis=make_diagnosis(RUN)), path)
    return path


@pytest.fixture
def whole(browser: Browser, written: Path) -> Browser:
    """The same page, just opened."""
    return open_page(browser, written)


def find(browser: Browser, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def rows(browser: Browser) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#list details')].map((each) => each.dataset.id)"
    )


def choose(browser: Browser, control: str, value: str) -> None:
    browser.execute_script(
        "const it = document.getElementById(arguments[0]); it.value = arguments[1]; it.dispatchEvent(new Event('change'))",
        control,
        value,
    )


def search(browser: Browser, words: str, expected: int) -> list[str]:
    """Types like a person, and waits until so many rows are left."""
    box = find(browser, "#search")[0]
    box.clear()
    box.send_keys(words)
    until(lambda: len(rows(browser)) == expected, lambda: rows(browser))
    return rows(browser)


def until(holds: Callable[[], bool], seen: Callable[[], Any]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    try:
        WebDriverWait(None, 20, 0.05).until(lambda _: holds())
    except Exception as error:
        raise AssertionError(f"it did not become so; last seen: {seen()}") from error


def complaints(browser: Browser) -> list[str]:
    """What the console says: errors of scripts, and whatever the policy refused."""
    return [each["message"] for each in browser.get_log("browser")]


def test_the_page_opens_without_a_word_in_the_console_and_asks_no_network(whole: Browser):
    sent = [json.loads(each["message"])["message"] for each in whole.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"]

    assert complaints(whole) == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in asked) == 1
    assert (
        find(whole, "h1")[0].text
        == f"{make_report(RUN).summary.measures['correct'].value:.1%} of 81 questions are answered correctly"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_plot_is_there_with_a_size_a_name_and_colours_that_can_be_seen(whole: Browser, theme: str):
    whole.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    measured = whole.execute_script(
        """const paper = getComputedStyle(document.body).backgroundColor;
        return Object.fromEntries([...document.querySelectorAll("svg.plot")].map((plot) => {
          const box = plot.getBoundingClientRect(), ink = getComputedStyle(plot.querySelector("text")).fill;
          const outside = [...plot.querySelectorAll("text")].filter((text) => {
            const at = text.getBoundingClientRect();
            return at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1;
          }).map((text) => text.textContent);
          return [plot.id, [box.width, box.height, plot.getAttribute("role"), plot.getAttribute("aria-label").length, ink !== paper,
                            plot.querySelectorAll("path").length, outside]];
        }))"""
    )
    paper = whole.execute_script("return getComputedStyle(document.body).backgroundColor")

    assert set(measured) == {f"plot-{name}" for name in PLOTS}
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 21, 27)"}[theme]
    for name, (width, height, role, label, is_seen, paths, outside) in measured.items():
        assert (width > 300, height > 60, role, label > 40, is_seen, paths > 2, outside) == (
            True, True, "img", True, True, True, []
        ), name  # fmt: skip
    assert complaints(whole) == []


def test_a_question_opens_and_shows_what_was_asked_said_and_shown(whole: Browser):
    cause = make_diagnosis(RUN).bars[0]
    name = next(each for each in cause.items if RUN.outcomes.get(each) and RUN.outcomes[each].passages)
    whole.execute_script("document.querySelector(`details[data-id='${arguments[0]}'] summary`).click()", name)
    until(lambda: bool(find(whole, f"details[data-id='{name}'] .detail")), lambda: "no detail")
    text = find(whole, f"details[data-id='{name}']")[0].text
    outcome = RUN.outcomes[name]

    assert len(find(whole, f"details[data-id='{name}'] .side")) == 2
    assert len(find(whole, f"details[data-id='{name}'] .side:first-child .passage")) == len(outcome.passages)
    for each in outcome.passages:
        assert each.text in text
        assert each.external_id in text
        assert f"version {each.version}" in text
    assert outcome.text in text
    assert f"({cause.cause})" in text
    assert cause.command.partition("QUESTION")[0] in text
    assert "milliseconds: embed" in text
    assert complaints(whole) == []


def test_rows_are_drawn_when_they_are_needed(browser: Browser, tmp_path: Path):
    write_page(make_report(make_run(1500, faults=0)), tmp_path / "many.html")
    open_page(browser, tmp_path / "many.html")

    assert find(browser, "#count")[0].text.startswith("1,500 of 1,500 questions")
    assert len(rows(browser)) == 100
    find(browser, "#more")[0].click()
    assert len(rows(browser)) == 200
    assert browser.execute_script("return document.activeElement.parentElement.dataset.id") == "q0100"
    assert search(browser, '"rule 1499 "', 1) == ["q1499"]
    assert find(browser, "#more")[0].is_displayed() is False
    assert find(browser, ".detail") == []
    assert complaints(browser) == []


def test_filters_narrow_the_list_to_what_they_say(whole: Browser):
    wrong = [each.id for each in RUN.set.items if RUN.scores[each.id].correct < 0.5] + ["row 81"]
    comparison = make_report(RUN, before=BEFORE).comparison
    assert comparison is not None
    tagged = [each.id for each in RUN.set.items if "travel" in each.tags]
    causes = make_diagnosis(RUN).causes

    choose(whole, "state", "wrong")
    assert rows(whole) == wrong
    choose(whole, "slice", "tag:travel")
    assert rows(whole) == [name for name in wrong if name in tagged]
    choose(whole, "state", "all")
    assert rows(whole) == tagged
    find(whole, "#filters button[type=reset]")[0].click()
    until(lambda: len(rows(whole)) == 81, lambda: rows(whole))
    choose(whole, "state", "gained")
    assert rows(whole) == list(comparison.moved("gained")) != []
    choose(whole, "state", "changed")
    assert set(rows(whole)) == {*comparison.moved("gained"), *comparison.moved("lost")}
    choose(whole, "state", "all")
    choose(whole, "cause", "ranked_out")
    assert rows(whole) == [name for name in causes if "ranked_out" in causes[name]] != []
    assert find(whole, "#count")[0].text == f"{len(rows(whole))} of 81 questions, 0 of them right"


def test_a_click_on_a_cause_or_a_slice_shows_its_questions(whole: Browser):
    causes = make_diagnosis(RUN).bars[0]
    find(whole, f"button.pick[data-value='{causes.cause}']")[0].click()
    assert sorted(rows(whole)) == sorted(causes.items)

    find(whole, "button.pick[data-value='unanswerable']")[0].click()
    assert rows(whole) == [each.id for each in RUN.set.items if not each.answerable]


def test_search_finds_words_of_questions_answers_and_documents(whole: Browser):
    said = [
        each.id
        for each in RUN.set.items
        if "30 weeks" in RUN.outcomes[each.id].text or "30 weeks" in BEFORE.outcomes[each.id].text
    ]

    assert search(whole, '"RULE 17 "', 1) == ["q0017"]
    assert search(whole, "17 rule", 2) == ["q0007", "q0017"]
    assert search(whole, "30 weeks", len(said)) == said
    assert search(whole, "no json", 1) == ["row 81"]
    assert search(whole, "nothing says this", 0) == []
    assert find(whole, "#count")[0].text == "0 of 81 questions, 0 of them right"


def test_the_keyboard_is_enough(whole: Browser):
    from selenium.webdriver.common.keys import Keys

    focused = "return document.activeElement.closest('details')?.dataset.id"
    find(whole, "#filters button[type=reset]")[0].send_keys(Keys.TAB)
    assert whole.execute_script(focused) == "q0000"
    whole.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert whole.execute_script(focused) == "q0001"
    whole.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: bool(find(whole, "details[data-id='q0001'][open] .passage")), lambda: rows(whole))
    whole.switch_to.active_element.send_keys(Keys.HOME)
    assert whole.execute_script(focused) == "q0000"
    whole.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert whole.execute_script(focused) == "q0000"


def test_a_screen_reader_is_told_what_is_what(whole: Browser):
    nameless = whole.execute_script(
        """return [...document.querySelectorAll("button, select, input, a, summary, section, figure, table, [role=region]")]
        .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim() || each.closest("label")
                || document.getElementById(each.getAttribute("aria-labelledby"))))
        .map((each) => each.outerHTML.slice(0, 80))"""
    )
    levels = whole.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))"
    )

    assert nameless == []
    assert whole.execute_script("return document.documentElement.lang") == "en"
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(after - before for before, after in pairwise(levels)) == 1
    assert find(whole, "#count")[0].get_attribute("aria-live") == "polite"
    assert whole.execute_script(
        "return [...document.querySelectorAll('table')].every((each) => each.caption && each.tHead)"
    )
    assert whole.execute_script(
        "return new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size === document.querySelectorAll('[id]').length"
    )


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_never_wider_than_its_window(whole: Browser, width: int):
    whole.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        for each in find(whole, "summary")[:3]:
            whole.execute_script("arguments[0].click()", each)
        assert whole.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        whole.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_text_of_a_document_a_user_or_a_model_runs(browser: Browser, tmp_path: Path):
    asked = replace(
        item(0), id=f"q{ATTACK}", question=ATTACK, answers=(ATTACK,), contains=(ATTACK,), tags=(ATTACK,), route=ATTACK,
        gold=(Gold(ATTACK, quote=ATTACK),),
    )  # fmt: skip
    done = Outcome(
        asked.id, ATTACK, cited=((ATTACK, 1, ATTACK),), passages=(passage(1, ATTACK, document=ATTACK),), route=ATTACK,
        adapter=ATTACK, flags=(ATTACK,), error="", sufficiency=0.5, timings_ms={ATTACK: 1.0},
    )  # fmt: skip
    failed = Outcome("q0001", error=f"{ATTACK}: {ATTACK}")
    run = as_run(ItemSet(ATTACK, (asked, item(1))), {asked.id: done, "q0001": failed}, name=ATTACK)
    diagnosis = make_diagnosis(run)
    diagnosis = replace(diagnosis, notes={name: ATTACK for name in diagnosis.causes})
    write_page(make_report(run, before=run, diagnosis=diagnosis), tmp_path / "attack.html")

    open_page(browser, tmp_path / "attack.html")
    for each in find(browser, "summary"):
        each.click()
    until(lambda: len(find(browser, ".detail")) == 2, lambda: browser.page_source[:500])
    question = find(browser, "summary .q")[0].text
    choose(browser, "slice", f"tag:{shown(ATTACK)}")

    assert rows(browser) == [shown(asked.id)]
    assert browser.execute_script("return window.hacked") is None
    assert [each.get_attribute("id") for each in find(browser, "script")] == ["data", ""]
    assert find(browser, "img") == []
    assert find(browser, "[onerror], [onfocus], [autofocus]") == []
    assert complaints(browser) == []
    written = browser.execute_script("return document.documentElement.textContent")
    assert not [sign for sign in "\u202e\u2066\x00\x07\x1b\u2028" if sign in written]
    assert "⟨U+202E⟩" in question
    assert "</script><script>window.hacked=1</script>" in question
    assert browser.title.startswith("Evaluation of </script>")


def test_the_browser_itself_refuses_what_would_slip_through(whole: Browser):
    """The second wall: script by text, by attribute, by another element, a style, a picture from outside."""
    refused = whole.execute_script(
        """const told = [];
        const attempt = (name, act) => {
          try { act(); told.push(name); } catch (error) { if (!(error instanceof TypeError)) throw error; }
        };
        attempt("innerHTML", () => { document.body.lastElementChild.innerHTML = "<b>x</b>"; });
        attempt("write", () => document.write("<b>x</b>"));
        const script = document.createElement("script");
        attempt("script", () => { script.textContent = "window.hacked = 1"; document.body.append(script); });
        document.body.setAttribute("style", "display: none");
        return [told, window.hacked === undefined, getComputedStyle(document.body).display];"""
    )

    assert refused == [[], True, "block"]
    assert any("Content Security Policy" in each or "TrustedHTML" in each for each in complaints(whole))


def test_the_page_prints_in_dark_ink_on_white(whole: Browser):
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    whole.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    try:
        colors = whole.execute_script(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor, "
            "getComputedStyle(document.getElementById('filters')).display]"
        )
        assert colors == ["rgb(0, 0, 0)", "rgb(255, 255, 255)", "none"]
        assert len(whole.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 50_000
    finally:
        whole.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
