"""The command line: results on standard output, errors that say what to do, exit codes 0, 1 and 2, JSON on request."""

import json

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.cli.output import PIPE_COLUMNS

COLLECTIONLESS = ("demo", "reference")


@pytest.fixture
def run(database_url, models_dir, monkeypatch, tmp_path):
    """Runs one command against a fresh database and gives its result."""
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATOR_ENGINE_URL", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def leaf_commands(group, path=()):
    for name in group.list_commands(None):
        found = group.get_command(None, name)
        if hasattr(found, "list_commands"):
            yield from leaf_commands(found, (*path, name))
        else:
            yield (*path, name), found


@pytest.mark.parametrize("path", [pytest.param(path, id=" ".join(path)) for path, _ in leaf_commands(main)])
def test_every_command_prints_json_on_request(path):
    command = dict(leaf_commands(main))[path]
    assert path[0] == "reference" or any("--json" in option.opts for option in command.params)


def test_markup_in_titles_and_remedies_is_printed_as_it_is(run, tmp_path):
    (tmp_path / "odd.md").write_text("---\nid: odd\ntitle: '[bold]odd[/bold] [cpu]'\n---\nZebras live in herds.")
    assert run("ingest", "odd.md").exit_code == 0
    assert "[bold]odd[/bold] [cpu]" in run("documents", "list").stdout
    assert "[bold]odd[/bold] [cpu]" in run("search", "zebras").stdout


def test_the_doctor_prints_the_extra_to_install(run, monkeypatch):
    monkeypatch.setattr("orchestrator.doctor.EXTRAS", {"train": ("no_such_module",)})
    assert "pip install 'hybrid-orchestrator[train]'" in run("doctor").stdout


def test_a_table_in_a_pipe_is_not_cut(run, tmp_path):
    name = "a-rather-long-file-name-" * 5 + ".txt"
    (tmp_path / name).write_text("some text")
    run("ingest", name)
    assert name in run("documents", "list").stdout
    assert len(name) < PIPE_COLUMNS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "x", "--collection", "none"), "there is no collection 'none'"),
        (("ask", "How long is the notice period?", "--route", "none"), "route 'none' does not exist"),
        (("ask", "x" * 20_000), "the limit is 16000"),
        (("ask", " "), "the question is empty"),
        (("ask", "How long is it?", "--as-of", "soon"), "'soon' is no date"),
        (("audit", "show", "ans_none"), "no answer 'ans_none' is recorded"),
        (("adapters", "show", "none"), "there is no adapter 'none'"),
    ],
)
def test_a_wrong_name_or_value_says_what_to_do_and_exits_with_1(run, arguments, said):
    result = run(*arguments)
    assert (result.exit_code, said in result.stderr) == (1, True), result.output


def test_an_error_in_json_mode_is_one_json_value(run):
    result = run("search", "x", "--collection", "none", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "not_found"


def test_wrong_usage_exits_with_2(run):
    assert run("ingest").exit_code == 2
    assert run("search", "x", "-k", "0").exit_code == 2


def test_a_missing_engine_is_named_and_the_failure_is_recorded_nowhere_as_an_answer(run, tmp_path):
    (tmp_path / "leave.md").write_text("Employees get 28 days of leave.")
    run("ingest", "leave.md")
    result = run("ask", "How many days of leave do employees get?")
    assert result.exit_code == 1
    assert "http://127.0.0.1:9 cannot be reached" in result.stderr
    assert json.loads(run("audit", "verify", "--json").stdout) == {"ok": True, "faults": []}


def test_ingest_names_each_bad_line_and_keeps_the_others(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id":"a","text":"alpha"}\n{bad\n{"id":"b","text":"beta"}\n')
    report = json.loads(run("ingest", "rows.jsonl", "--json").stdout)
    assert (report["added"], [failure["line"] for failure in report["failures"]]) == (2, [2])
    assert json.loads(run("ingest", "rows.jsonl", "--json").stdout)["unchanged"] == 2


def test_a_document_goes_through_versions_and_is_deleted(run, tmp_path):
    for day, limit in (("2024-01-01", "120"), ("2025-01-01", "140")):
        text = f"---\nid: hotel\nvalid_from: {day}\n---\nA hotel may cost {limit} EUR a night."
        (tmp_path / "rules").mkdir(exist_ok=True)  # beside the home, whose manifests are JSON and would be read too
        (tmp_path / "rules" / f"{day}.md").write_text(text)
    assert run("ingest", "rules").exit_code == 0

    def search():
        return json.loads(run("search", "hotel limit", "--as-of", "2024-06-01", "--json").stdout)["passages"]

    assert [("120" in passage["text"], passage["version"]) for passage in search()] == [(True, 1)]
    assert len(json.loads(run("documents", "history", "hotel", "--json").stdout)["versions"]) == 2
    assert "140" in run("documents", "show", "hotel").stdout
    assert run("documents", "delete", "hotel").exit_code == 0
    assert search() == []


def test_a_document_is_changed_back_taken_back_and_ended(run, tmp_path):
    for limit in ("120", "140"):
        (tmp_path / "hotel.md").write_text(f"# Travel\n\nA hotel may cost {limit} EUR a night.")
        assert run("ingest", "hotel.md").exit_code == 0

    shown = run("documents", "diff", "hotel.md").stdout
    assert "-A hotel may cost 120 EUR a night.\n+A hotel may cost 140 EUR a night." in shown
    (difference,) = json.loads(run("documents", "diff", "hotel.md", "--from", "2", "--to", "1", "--json").stdout)[
        "differences"
    ]
    assert (difference["kind"], difference["paragraph_before"]) == ("changed", 1)

    assert json.loads(run("documents", "restore", "hotel.md", "--version", "1", "--json").stdout)["version"] == 3
    assert "120" in run("documents", "show", "hotel.md").stdout
    assert "from 2" in run("documents", "withdraw", "hotel.md", "--version", "3").stdout
    assert "140" in run("documents", "show", "hotel.md").stdout
    assert "has ended" in run("documents", "retire", "hotel.md").stdout
    assert "was retired" in run("documents", "show", "hotel.md").stderr
    assert "120" in run("documents", "show", "hotel.md", "--as-of", "2024-01-01").stdout
    assert "(end)" in run("documents", "history", "hotel.md").stdout
    assert json.loads(run("documents", "list", "--json").stdout)["documents"] == []
    assert "retired" in run("documents", "list", "--deleted").stdout


def test_a_folder_is_followed_and_many_lost_files_are_asked_about(run, tmp_path):
    folder = tmp_path / "handbook"
    folder.mkdir()
    for number in range(5):
        (folder / f"page{number}.md").write_text(f"Page number {number}.")
    assert run("ingest", "handbook", "--sync").exit_code == 0
    for number in range(4):
        (folder / f"page{number}.md").unlink()

    refused = run("ingest", "handbook", "--sync")
    assert (refused.exit_code, "--yes" in refused.stderr) == (1, True)
    assert len(json.loads(run("documents", "list", "--json").stdout)["documents"]) == 5

    report = json.loads(run("ingest", "handbook", "--sync", "--yes", "--json").stdout)["folders"][0]
    assert (len(report["retired"]), report["ingest"]["unchanged"]) == (4, 1)
    assert "retired: " not in run("ingest", "handbook", "--sync").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("documents", "diff", "page.md"), "no version before 1"),
        (("documents", "restore", "page.md", "--version", "7"), "no version 7"),
        (("documents", "withdraw", "none.md", "--version", "1"), "no such document 'none.md'"),
        (("documents", "retire", "page.md", "--from", "soon"), "'soon' is no date"),
        (("documents", "show", "page.md", "--version", "1", "--as-of", "2024-01-01"), "the one or the other"),
        (("ingest", "page.md", "--yes"), "belong to --sync"),
        (("ingest", "page.md", "--sync"), "folders only"),
    ],
)
def test_wrong_use_of_time_says_what_to_do(run, tmp_path, arguments, said):
    (tmp_path / "page.md").write_text("A page.")
    assert run("ingest", "page.md").exit_code == 0
    result = run(*arguments)
    assert (result.exit_code, said in result.stderr) == (1, True), result.output


def test_a_url_is_not_fetched_unless_it_is_allowed(run):
    refused = run("ingest", "https://example.org/handbook.html")
    assert refused.exit_code == 1
    assert "ORCHESTRATOR_ALLOW_URLS" in refused.stderr
    synced = run("ingest", "--sync", "https://example.org/handbook.html")
    assert (synced.exit_code, "--sync takes folders" in synced.stderr) == (1, True)
