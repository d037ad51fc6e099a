"""Proves the picture of layers in docs/design.md: who imports whom, which library has which door, and what is never called."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import orchestrator

PACKAGE = Path(orchestrator.__file__).parent

# A module or package imports only lower layers, and only what stands to its left in its own. A new file goes in here.
LAYERS = [
    ["types", "errors", "intervals"],  # words
    ["failpoints", "resources", "settings", "protocols"],  # seams
    # text: no network, no database
    ["vet", "places", "report", "contract", "prompts", "compose", "citations", "check", "reveal"],
    ["database", "migrate", "tenants", "ledger", "feedback", "tokens", "engine", "decoder", "launch"],  # world
    ["knowledge", "behaviour"],  # the two layers; they never import each other, see STRANGERS
    ["learnt", "router", "pipeline", "evaluation"],  # centre
    ["resident", "serving", "admit", "app", "doctor"],  # face
    ["api", "langchain_store", "langchain", "cli"],  # edges
]
FREE = {"testing", "__main__"}  # fakes stand in for modules of any layer, __main__ only starts the command line
STRANGERS = {("knowledge", "behaviour"), ("behaviour", "knowledge")}
# A package in a package that knows nothing of its neighbours: what reads foreign files stands below the rest of its layer.
LOWEST = {"knowledge.sources"}

# Each outside library has its doors: modules, or packages with everything below.
DOORS = {
    "aiohttp": {"engine", "knowledge.embed", "knowledge.rerank", "behaviour.distill", "launch.watch"},
    "charset_normalizer": {"knowledge.sources.decode"},
    "click": {"cli"},
    "docx": {"knowledge.sources.word"},
    "gguf": {"launch.smollm2"},
    "jsonschema_rs": {"contract", "evaluation.score"},
    "langchain_core": {"langchain", "langchain_store"},
    "matplotlib": {"evaluation.plots"},
    "numpy": {"learnt", "router", "knowledge", "behaviour", "evaluation", "langchain_store", "launch.minilm"},
    "onnx": {"launch.minilm"},
    "onnxruntime": {"knowledge.embed"},
    "orjson": {"engine", "knowledge", "behaviour", "launch", "api"},
    "accelerate": {"behaviour.processes"},
    "peft": {"behaviour"},
    "pgvector": {"knowledge.store"},
    "platformdirs": {"settings"},
    "psutil": {"launch"},
    "psycopg": {"database"},
    "psycopg_pool": {"database"},
    "scipy": {"behaviour.measure"},
    "py3langid": {"knowledge.lexical"},
    "pydantic": {"langchain"},
    "sentence_transformers": {"knowledge.rerank"},
    "openpyxl": {"knowledge.sources.sheets"},
    "pptx": {"knowledge.sources.slides"},
    "pypdf": {"knowledge.sources.pdf"},
    "rich": {"cli"},
    "safetensors": {"behaviour"},
    "selectolax": {"knowledge.sources.html"},
    "sklearn": {"evaluation.fit_router"},
    "starlette": {"api"},
    "threadpoolctl": {"evaluation.fit_router"},
    "tokenizers": {"tokens", "knowledge.embed", "launch.smollm2"},
    "torch": {"behaviour", "launch.smollm2", "launch.lora_cpu"},  # launch: in a child process of its own
    "transformers": {"behaviour", "launch.smollm2", "launch.grammar"},
    "uvicorn": {"api"},
    "vllm": {"launch.vllm_server", "launch.lora_cpu"},  # a child process of its own
    "xgrammar": {"launch.grammar"},  # a child process of its own
    "yaml": {"prompts", "knowledge.sources.document"},
}

# What opens a way from data to code. `format` on a text of others reads attributes of our values.
NEVER_IMPORTED = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jinja2",
    "langchain_core.load",
}
NEVER_CALLED = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "numpy.load", "np.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "string.Template", "Template",
}  # fmt: skip
SQL_CALLS = {"execute", "executemany", "fetch", "fetch_one", "copy", "stream"}
HEAVY = {
    "vllm",
    "torch",
    "transformers",
    "langchain_community",
    "peft",
    "onnxruntime",
    "langchain_core",
    "aiohttp",
    "psycopg",
}


@cache
def modules(package=PACKAGE):
    """Name below the package (``knowledge.store``) to syntax tree, for every file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and "site" not in parts:  # `site` is a folder for PYTHONPATH of a child, no package of ours
            found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def imports(tree):
    """Every dotted name that the module imports anywhere: in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: they read the same everywhere"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree, known):
    """The modules of ours that it imports, by their names below the package."""
    for name in imports(tree):
        if name.partition(".")[0] != "orchestrator":
            continue
        parts = name.split(".")[1:]
        candidates = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        yield next((candidate for candidate in candidates if candidate in known), "")


def place(name):
    """Layer and place in it; None for what is free."""
    top = name.partition(".")[0]
    return next(((level, row.index(top)) for level, row in enumerate(LAYERS) if top in row), None)


def layer_faults(found):
    faults = []
    for name, tree in found.items():
        top = name.partition(".")[0]
        if top in FREE:
            continue
        if place(name) is None:
            faults.append(f"{name} has no layer: put it into LAYERS of tests/test_layers.py")
            continue
        for other in own_imports(tree, modules()):
            other_top = other.partition(".")[0]
            lowest = next((part for part in LOWEST if f"{name}.".startswith(f"{part}.")), None)
            if lowest and other_top == top and not f"{other}.".startswith(f"{lowest}."):
                faults.append(f"{name} imports {other}, and {lowest} is the lowest of its layer")
            if not other or other_top == top:
                continue
            if (top, other_top) in STRANGERS:
                faults.append(f"{name} imports {other}: the two layers know nothing of each other; take a callable")
            elif place(other) is None or place(other) > place(name):
                faults.append(f"{name} imports {other}, which stands above it or to its right")
    return faults


def door_faults(found):
    faults = []
    for name, tree in found.items():
        for library in sorted({imported.partition(".")[0] for imported in imports(tree)} - {"orchestrator"}):
            if library in sys.stdlib_module_names:
                continue
            doors = DOORS.get(library)
            if doors is None:
                faults.append(f"{name} imports {library}: give it a door in DOORS of tests/test_layers.py")
            elif not any(name == door or name.startswith(f"{door}.") for door in doors) and name != "testing":
                faults.append(f"{name} imports {library}, whose doors are {sorted(doors)}")
    return faults


def danger_faults(found):
    faults = []
    for name, tree in found.items():
        for imported in imports(tree):
            if any(imported == danger or imported.startswith(f"{danger}.") for danger in NEVER_IMPORTED):
                faults.append(f"{name} imports {imported}")
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            faults.extend(f"{name}:{call.lineno} {fault}" for fault in _call_faults(call))
    return faults


def _call_faults(call):
    called = ast.unparse(call.func)
    method = called.rpartition(".")[2]
    if called in NEVER_CALLED:
        yield f"calls {called}"
    if isinstance(call.func, ast.Attribute) and method in ("format", "format_map") and "SQL(" not in called:
        yield f"calls {method}: no text is a template"
    if any(keyword.arg == "shell" and ast.unparse(keyword.value) != "False" for keyword in call.keywords):
        yield "runs a shell"
    if any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in call.keywords):
        yield "allows pickle"
    if method in SQL_CALLS and call.args and isinstance(call.args[0], ast.JoinedStr | ast.BinOp):
        yield f"glues SQL for {method}"


def cycle(found):
    """One circle of imports below the package, or nothing."""
    graph = {
        name: {other for other in own_imports(tree, found) if other not in ("", name)} for name, tree in found.items()
    }
    for name in list(graph):  # a package's __init__ that names its own modules is no circle for them
        graph[name] = {other for other in graph[name] if not name.startswith(f"{other}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_go_down_and_to_the_left():
    assert layer_faults(modules()) == []


def test_each_library_has_its_doors():
    assert door_faults(modules()) == []


def test_every_door_is_used():
    used = {(imported.partition(".")[0], name) for name, tree in modules().items() for imported in imports(tree)}
    unused = {
        f"{library} in {door}"
        for library, doors in DOORS.items()
        for door in doors
        if not any(library == other and f"{name}.".startswith(f"{door}.") for other, name in used)
    }

    assert unused == set()


def test_no_way_leads_from_data_to_code():
    assert danger_faults(modules()) == []


def test_no_two_modules_import_each_other():
    assert cycle(modules()) == []


def test_the_picture_names_nothing_twice():
    names = [name for row in LAYERS for name in row]

    assert len(names) == len(set(names))
    assert not set(names) & FREE


@pytest.mark.parametrize(
    "module", ["orchestrator", "orchestrator.types", "orchestrator.settings", "orchestrator.prompts"]
)
def test_what_is_light_stays_light(module):
    assert not loaded_by(module) & HEAVY


@pytest.mark.parametrize(
    "module", ["orchestrator.pipeline", "orchestrator.app", "orchestrator.cli", "orchestrator.api"]
)
def test_models_are_loaded_when_they_are_used(module):
    assert not loaded_by(module) & {"vllm", "torch", "transformers", "peft", "onnxruntime", "langchain_community"}


def loaded_by(module):
    """Top-level names of everything that an import loads."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}


def test_the_list_of_what_is_loaded_is_real():
    assert {"orchestrator", "importlib"} <= loaded_by("orchestrator")
    assert "psycopg" in loaded_by("orchestrator.database")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("types", "import orchestrator.errors"),
        ("compose", "from orchestrator.citations import cite"),
        ("compose", "from orchestrator import database"),
        ("compose", "def f():\n    from orchestrator.pipeline import Pipeline"),
        ("ledger", "if TYPE_CHECKING:\n    from orchestrator.app import Orchestrator"),
        ("behaviour.train", "def f():\n    from orchestrator.knowledge.store import PgStore"),
        ("knowledge.ingest", "import orchestrator.behaviour.registry"),
        ("knowledge.sources.load", "from orchestrator.knowledge.store import PgStore"),
        ("pipeline", "import orchestrator.testing"),
        ("helpers", "pass"),
    ],
)
def test_a_wrong_import_is_seen(name, code):
    assert layer_faults({name: ast.parse(code)})


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("app", "import vllm"),
        ("pipeline", "def f():\n    import torch"),
        ("knowledge.store", "from psycopg_pool import ConnectionPool"),
        ("cli.main", "import requests"),
        ("app", "from langchain_core.documents import Document"),
    ],
)
def test_a_library_beside_its_door_is_seen(name, code):
    assert door_faults({name: ast.parse(code)})


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from langchain_core.load import loads",
        "import langchain_core.load.load",
        "torch.load(path)",
        "text.format(question=question)",
        "'{}'.format(x)",
        "text.format_map(values)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "numpy.load(path, allow_pickle=True)",
        "connection.execute(f'select * from {table}')",
        "database.fetch('select * from ' + table)",
        "connection.execute('select %s' % value)",
        "yaml.load(text)",
    ],
)
def test_a_way_from_data_to_code_is_seen(code):
    assert danger_faults({"types": ast.parse(code)})


def test_a_circle_is_seen():
    found = {**modules(), "errors": ast.parse("from orchestrator.contract import Contract")}

    assert set(cycle(found)) >= {"errors", "contract"}
