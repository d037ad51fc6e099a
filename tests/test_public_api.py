"""The surface: every public name resolves, says what it is, and is where the documentation draws it."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import orchestrator
from orchestrator import errors

PACKAGE = Path(orchestrator.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "site" not in path.relative_to(PACKAGE).parts)
VALUES = (
    "Adapter",
    "Answer",
    "Chunk",
    "Citation",
    "Completion",
    "Contract",
    "Document",
    "Message",
    "Passage",
    "Plan",
    "Query",
)


def public_definitions(tree):
    """Public functions, classes and methods of a module, with their dotted names; protocols' members among them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member


def overrides_setter(node):
    return any(ast.unparse(decorator).endswith((".setter", "overload")) for decorator in node.decorator_list)


def drawn_tree(text):
    """Pairs (name, parent) in the order in which a docstring draws them with box lines."""
    stack, pairs = [], []
    for line in text.splitlines():
        found = re.match(r"^(?:((?:│   |    )*)(?:├── |└── ))?([A-Z]\w*Error)\b", line)
        if found:
            depth = 0 if found.group(1) is None else len(found.group(1)) // 4 + 1
            del stack[depth:]
            pairs.append((found.group(2), stack[-1] if stack else None))
            stack.append(found.group(2))
    return pairs


def real_tree(cls, parent=None):
    """The same pairs from the classes themselves, in the order in which they are defined."""
    yield cls.__name__, parent
    for child in cls.__subclasses__():
        if child.__module__ == "orchestrator.errors":
            yield from real_tree(child, cls.__name__)


def test_every_public_name_resolves():
    for name in orchestrator.__all__:
        assert getattr(orchestrator, name) is not None, name


@pytest.mark.parametrize("name", sorted(set(orchestrator.__all__) - {"__version__"}))
def test_every_public_name_says_what_it_is(name):
    documented = getattr(orchestrator, name)

    assert inspect.getdoc(documented), name
    assert not (is_dataclass(documented) and documented.__doc__.startswith(f"{documented.__name__}(")), (
        "a generated docstring"
    )


def test_what_is_visible_is_what_is_public():
    assert dir(orchestrator) == orchestrator.__all__ == sorted(orchestrator.__all__)
    assert [name for name in orchestrator.__all__ if name.startswith("_")] == ["__version__"]


def test_nothing_else_becomes_visible_by_importing():
    code = "import orchestrator, sys; print([n for n in vars(orchestrator) if not n.startswith('_')])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)

    assert set(ast.literal_eval(done.stdout)) <= {"annotations", "importlib", "Any"}


def test_every_value_of_the_design_is_public():
    assert set(VALUES) <= set(orchestrator.__all__)


def test_a_missing_name_is_an_attribute_error_that_names_the_others():
    with pytest.raises(AttributeError, match=r"Pipelin.*Query"):
        orchestrator.Pipelin  # noqa: B018


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from orchestrator import *", names)

    assert set(orchestrator.__all__) <= names.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_and_public_definition_has_a_docstring(path):
    tree = ast.parse(path.read_text("utf-8"))
    bare = [
        name for name, node in public_definitions(tree) if not ast.get_docstring(node) and not overrides_setter(node)
    ]

    assert ast.get_docstring(tree), "the file opens with one sentence"
    assert bare == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text("utf-8")
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]

    assert len(text.splitlines()) <= 600
    assert long == []
    assert path.stem not in {"utils", "helpers", "common", "base", "manager"}


def test_the_errors_are_drawn_as_they_are():
    drawn, real = drawn_tree(errors.__doc__), list(real_tree(errors.OrchestratorError))

    assert sorted(drawn) == sorted(real)
    assert [name for name, _ in drawn] == [name for name, _ in real]


def test_the_drawing_is_read_with_its_indentation():
    assert drawn_tree("AError\n├── BError  x\n│   ├── CError\n│   └── DError\n└── EError") == [
        ("AError", None),
        ("BError", "AError"),
        ("CError", "BError"),
        ("DError", "BError"),
        ("EError", "AError"),
    ]


@pytest.mark.parametrize("cls", [getattr(errors, name) for name, _ in real_tree(errors.OrchestratorError)])
def test_every_error_has_a_code_and_a_status(cls):
    assert re.fullmatch(r"[a-z_]+", cls.code)
    assert 400 <= cls.http_status <= 599
    assert f"(HTTP {cls.http_status})" in errors.__doc__ or cls.http_status in (400, 500, 502)
    assert cls.__doc__.endswith(".") or cls.__doc__.endswith(")")


def test_the_statuses_in_the_drawing_are_the_real_ones():
    for name, status in re.findall(r"(\w+Error)\b[^\n]*\(HTTP (\d+)\)", errors.__doc__):
        assert getattr(errors, name).http_status == int(status), name


def test_an_error_carries_message_answer_and_parameter():
    error = errors.InputError("say more", answer_id="ans_1", param="messages")

    assert (str(error), error.message, error.answer_id, error.param) == ("say more", "say more", "ans_1", "messages")


def test_a_missing_extra_says_how_to_get_it():
    error = errors.MissingExtraError("train", "training an adapter")

    assert "pip install 'hybrid-orchestrator[train]'" in str(error)
    assert error.answer_id is None


def test_values_are_frozen_and_have_slots():
    for name in VALUES:
        value = getattr(orchestrator, name)
        assert value.__dataclass_params__.frozen, name
        assert hasattr(value, "__slots__"), name
        assert fields(value), name


def test_modules_import_by_themselves():
    for name in ("types", "errors", "protocols", "testing", "check", "compose", "contract", "pipeline"):
        assert importlib.import_module(f"orchestrator.{name}").__doc__
