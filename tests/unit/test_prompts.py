"""The prompts folder: what ships is read, what is wrong is refused by file and key, values are never templates."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SettingsError, UnknownNameError
from orchestrator.prompts import load_catalogue, parse_prompt
from orchestrator.resources import folder
from orchestrator.types import Message

PROMPT = "---\nvariables: [passages, question]\n---\n# system\nBe brief.\n\n# user\n{{passages}}\n\nQuestion: {{ question }}\n"
ROUTES = """
[router]
fallback = "direct"
[routes.direct]
prompt = "direct"
contract = "text_answer"
"""


@pytest.fixture
def copied(tmp_path):
    """The shipped folder, to be spoilt."""
    return shutil.copytree(folder("prompts"), tmp_path / "prompts")


def test_the_shipped_folder_is_read():
    catalogue = load_catalogue(folder("prompts"))

    assert {"grounded", "direct", "clarify", "refuse"} <= catalogue.routes.keys()
    assert catalogue.route("grounded").contract == "cited_answer"
    assert catalogue.contract("cited_answer").citations == "citations"
    assert catalogue.prompt("grounded").variables == ("passages", "question")


@pytest.mark.parametrize("kind", ["route", "prompt", "contract"])
def test_an_unknown_name_is_refused_and_the_known_ones_are_named(kind):
    with pytest.raises(UnknownNameError, match=f"{kind} 'nowhere'.*\\[.*\\]") as caught:
        getattr(load_catalogue(folder("prompts")), kind)("nowhere")

    assert caught.value.param == kind


def test_a_prompt_becomes_messages():
    prompt = parse_prompt("p", PROMPT)

    assert prompt.render({"passages": "P", "question": "Q"}) == (
        Message("system", "Be brief."),
        Message("user", "P\n\nQuestion: Q"),
    )


@given(passages=st.text(), question=st.text())
def test_what_a_value_holds_is_never_a_template(passages, question):
    prompt = parse_prompt("p", PROMPT)

    rendered = prompt.render({"passages": passages + "{{question}} {question} %s \\1 \\g<0>", "question": question})

    assert rendered[1].content == passages + "{{question}} {question} %s \\1 \\g<0>" + "\n\nQuestion: " + question


def test_a_missing_value_is_named():
    with pytest.raises(SettingsError, match="passages"):
        parse_prompt("p", PROMPT).render({"question": "Q"})


def test_another_byte_is_another_digest():
    assert parse_prompt("p", PROMPT).digest != parse_prompt("p", PROMPT.replace("brief", "short")).digest


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("# user\n{{question}}", "front matter"),
        ("---\nvariables: [question]\n# user\n{{question}}", "front matter"),
        ("---\nvariables: [question\n---\n# user\n{{question}}", "not YAML"),
        ("---\n- question\n---\n# user\n{{question}}", "key: value"),
        ("---\nvariables: question\n---\n# user\n{{question}}", "key: value"),
        ("---\nvariables: []\nmodel: gpt\n---\n# user\nhello", "model"),
        ("---\nvariables: []\n---\n# user\n{{question}}", "declared variables"),
        ("---\nvariables: [question, passages]\n---\n# user\n{{question}}", "declared variables"),
        ("---\nvariables: [secret]\n---\n# user\n{{secret}}", "known"),
        ("---\nvariables: []\n---\nno section", "would never be sent"),
        ("---\nvariables: []\n---\n", "declared variables"),
    ],
)
def test_a_wrong_prompt_is_refused_by_name(body, said):
    with pytest.raises(SettingsError, match=f"'odd'.*{said}"):
        parse_prompt("odd", body)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("colour = 'red'", "colour"),
        ("name = 'other'", "name"),
        ("k = '5'", "k must be a whole number"),
        ("k = true", "k must be a whole number"),
        ("max_tokens = -1", "max_tokens must be a whole number"),
        ("temperature = 'hot'", "temperature must be float"),
        ("adapter = 5", "adapter must be str"),
        ("keywords = 'classify'", "keywords must be a list"),
        ("keywords = [1]", "keywords must be a list"),
        ("degrade = 1", "degrade must be bool"),
        ("patterns = ['(']", "pattern"),
        ("k = 3", "refusal text"),
        ("action = 'dance'", "action must be one of"),
        ("action = 'refuse'", "have a reply"),
        ("reply = 'no'", "have a reply"),
    ],
)
def test_a_wrong_key_of_a_route_is_refused_by_name(copied, line, said):
    (copied / "routes.toml").write_text(ROUTES + line)

    with pytest.raises(SettingsError, match=said):
        load_catalogue(copied)


def test_a_whole_number_is_a_temperature(copied):
    (copied / "routes.toml").write_text(ROUTES + "temperature = 1")

    assert load_catalogue(copied).route("direct").temperature == 1.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('fallback = "direct"', 'fallback = "nowhere"', "fallback 'nowhere'"),
        ('fallback = "direct"', 'fallback = "direct"\nspeed = 1', "speed"),
        ('prompt = "direct"', 'prompt = "nowhere"', r"routes\.direct"),
        ('contract = "text_answer"', 'contract = "nowhere"', r"routes\.direct"),
        ("[router]", "[router", "routes.toml"),
        ("[router]", "[other]\n[router]", "other"),
    ],
)
def test_a_wrong_routes_file_is_refused(copied, old, new, said):
    (copied / "routes.toml").write_text(ROUTES.replace(old, new))

    with pytest.raises(SettingsError, match=said):
        load_catalogue(copied)


def test_a_folder_without_routes_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match="ORCHESTRATOR_PROMPTS_DIR"):
        load_catalogue(tmp_path)


def test_a_missing_text_folder_is_refused():
    with pytest.raises(SettingsError, match="nowhere"):
        folder("nowhere")
