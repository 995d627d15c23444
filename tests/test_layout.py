"""The order of the rooms, their size, and what `import tttnn` costs."""

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tttnn


PACKAGE = Path(tttnn.__file__).parent

# The way of the data: a module imports only from its left.
ORDER = [
    "corpus",
    "texts",
    "retries",
    "remote",
    "embedding",
    "passages",
    "manifest",
    "moving",
    "quantization",
    "shards",
    "index",
    "writing",
    "conversion",
    "unfinished",
    "building",
    "published_index",
    "cards",
    "hub",
    "subset",
    "neighbor_cache",
    "neighbors",
    "retriever",
    "selection",
    "windows",
    "scoring",
    "restore",
    "training_args",
    "checks",
    "records",
    "journal",
    "pile",
    "callbacks",
    "steps",
    "episode",
    "trainer",
    "baselines",
    "choice",
    "report",
    "evaluation_args",
    "evaluation",
    "cli_index",
    "cli",
    "__main__",
]
# Outside of the order: the public names point everywhere, and the metric is also a Hub Space of its own.
FACADE = "__init__"
SELF_CONTAINED = "metrics"

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(source, package):
    """The modules of tttnn that a module of `package` imports, wherever in its text."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return {(name.split(".") + [FACADE])[1] for name in names if name.split(".")[0] == "tttnn"}


def parametrize_files(files):
    return pytest.mark.parametrize("path", files, ids=lambda path: path.relative_to(PACKAGE).as_posix())


@pytest.mark.parametrize(
    ("statement", "rooms"),
    [
        ("import numpy", set()),
        ("import tttnn.index", {"index"}),
        ("import tttnn", {FACADE}),
        ("from tttnn.corpus import Document, TextStore", {"corpus"}),
        ("from tttnn import corpus, windows", {"corpus", "windows"}),
        ("from .scoring import score", {"scoring"}),
        ("from . import report", {"report"}),
        ("def late():\n    from tttnn.trainer import TestTimeTrainer", {"trainer"}),
    ],
)
def test_every_form_of_import_is_seen(statement, rooms):
    assert imported_rooms(statement, "tttnn") == rooms


@parametrize_files([path for path in FILES if room_of(path) not in (FACADE, SELF_CONTAINED)])
def test_a_module_imports_only_from_its_left(path):
    room = room_of(path)
    assert room in ORDER, f"`{room}` has no place in the order of this test"
    package = ".".join(["tttnn", *path.relative_to(PACKAGE).parent.parts])
    allowed = {room, *ORDER[: ORDER.index(room)]}
    assert imported_rooms(path.read_text(), package) <= allowed


@parametrize_files([path for path in FILES if room_of(path) == SELF_CONTAINED])
def test_the_metric_imports_nothing_from_the_package(path):
    assert imported_rooms(path.read_text(), ".".join(["tttnn", *path.relative_to(PACKAGE).parent.parts])) == set()


def test_every_room_of_the_order_exists():
    assert set(ORDER) <= {room_of(path) for path in FILES}


@parametrize_files(FILES)
def test_a_file_is_short(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_FILE_LINES


@parametrize_files(FILES)
def test_a_function_is_short(path):
    lengths = {
        f"{node.name}, line {node.lineno}": node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_importing_the_package_imports_no_heavy_library():
    program = "import sys, tttnn; print(*{'torch', 'transformers', 'faiss', 'datasets'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("name", tttnn.__all__)
def test_a_public_name_resolves(name):
    assert getattr(tttnn, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tttnn.no_such_name
