"""The rooms of the house: what each may import, by which door it is entered, and what an import costs."""

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tttnn


PACKAGE = Path(tttnn.__file__).parent

GROUND = {
    "documents",
    "neighbors",
    "records",
    "intervals",
    "journal",
    "files",
    "errors",
    "doors",
    "helptext",
    "citation",
    "token_colors",
}
# What each room may import beside itself and the ground floor. A name with a dot is one file of a room.
MAY_IMPORT = {
    "embedding": set(),
    "index": {"embedding"},
    "retrieval": {"embedding", "index", "cluster"},
    "selection": set(),
    "adaptation": {"selection"},
    "methods": {"adaptation"},
    "generation": {"adaptation"},
    "evaluation": {"embedding", "index", "retrieval", "selection", "adaptation", "methods"},
    "report": {"evaluation.pile", "adaptation.presets", "adaptation.options"},
    "cluster": {"embedding", "index"},
    "cli": {
        "embedding",
        "index",
        "retrieval",
        "adaptation",
        "methods",
        "generation",
        "evaluation",
        "report",
        "cluster",
    },
    "__main__": {"cli"},
}
# Inside the index: a file imports only from its left, and building comes before sharing.
INDEX_ORDER = [
    *(
        "texts",
        "faiss_files",
        "vectors",
        "products",
        "manifest",
        "integrity",
        "rows",
        "shard",
        "search",
        "opening",
        "subset",
    ),
    *("build", "hub"),
]
# Outside of the table: the public names point everywhere, and the metric is also a Hub Space.
FACADE = "__init__"
SELF_CONTAINED = "metrics"
# What the ground floor imports beside the standard library and NumPy, and inside of functions only.
IMPORTED_LATE = {
    "documents/formats.py": {"pyarrow"},
    "documents/rows.py": {"pyarrow"},
    "documents/folders.py": {"datasets"},
    "documents/sources.py": {"datasets"},
    "files.py": {"filelock"},
}
HEAVY = {"torch", "transformers", "faiss", "datasets", "sentence_transformers", "scipy"}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(source, package):
    """The modules and names of tttnn that a module of `package` imports, wherever in its text."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return [name.split(".")[1:] for name in names if name.split(".")[0] == "tttnn"]


def roots_of(nodes):
    """The packages that statements import: `pyarrow` of `import pyarrow.parquet`."""
    roots = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add("tttnn" if node.level else (node.module or "").split(".")[0])
    return roots


def package_of(path):
    return ".".join(["tttnn", *path.relative_to(PACKAGE).parent.parts])


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def parametrize_files(files):
    return pytest.mark.parametrize("path", files, ids=lambda path: path.relative_to(PACKAGE).as_posix())


IN_ROOMS = [path for path in FILES if room_of(path) not in (FACADE, SELF_CONTAINED)]


@pytest.mark.parametrize(
    ("statement", "modules"),
    [
        ("import numpy", []),
        ("import tttnn.index", [["index"]]),
        ("import tttnn", [[]]),
        ("from tttnn.documents import Document", [["documents", "Document"]]),
        ("from tttnn import report, cli", [["report"], ["cli"]]),
        ("from .scoring import score", [["adaptation", "scoring", "score"]]),
        ("def late():\n    from tttnn.retrieval import retriever", [["retrieval", "retriever"]]),
    ],
)
def test_every_form_of_import_is_seen(statement, modules):
    assert imports_of(statement, "tttnn.adaptation") == modules


@parametrize_files(IN_ROOMS)
def test_a_room_imports_what_the_table_says(path):
    room = room_of(path)
    allowed = GROUND if room in GROUND else GROUND | {room} | MAY_IMPORT[room]
    for parts in imports_of(path.read_text(), package_of(path)):
        assert parts, f"`{path}` imports the public names of tttnn"
        assert {parts[0], ".".join(parts[:2])} & allowed, f"`{room}` may not import `tttnn.{'.'.join(parts)}`"


@pytest.mark.parametrize(
    ("statement", "roots"),
    [
        ("import numpy, pyarrow.parquet", {"numpy", "pyarrow"}),
        ("from . import rows", {"tttnn"}),
        ("def late():\n    from datasets import load_dataset", {"datasets"}),
    ],
)
def test_the_package_of_every_import_is_seen(statement, roots):
    assert roots_of(ast.walk(ast.parse(statement))) == roots


@parametrize_files(IN_ROOMS)
def test_a_room_is_entered_by_its_door(path):
    exceptions = MAY_IMPORT.get(room_of(path), set())
    for parts in imports_of(path.read_text(), package_of(path)):
        if len(parts) < 2 or parts[0] == room_of(path) or not (PACKAGE / parts[0]).is_dir():
            continue  # the room itself, or a file that has no door
        room, name = parts[:2]
        if f"{room}.{name}" not in exceptions:
            assert name in import_module(f"tttnn.{room}").__all__, f"`{name}` is inside of `tttnn.{room}`"


@parametrize_files([path for path in IN_ROOMS if room_of(path) == "index" and path.name != "__init__.py"])
def test_the_index_imports_from_its_left(path):
    place = INDEX_ORDER.index(path.relative_to(PACKAGE / "index").with_suffix("").parts[0])
    for parts in imports_of(path.read_text(), package_of(path)):
        assert parts[0] != "index" or parts[1] in INDEX_ORDER[: place + 1]


@parametrize_files([path for path in FILES if room_of(path) == SELF_CONTAINED])
def test_the_metric_imports_nothing_from_the_package(path):
    assert imports_of(path.read_text(), package_of(path)) == []


@parametrize_files([path for path in IN_ROOMS if room_of(path) in GROUND])
def test_the_ground_floor_stands_on_the_standard_library_and_numpy(path):
    module = ast.parse(path.read_text())
    allowed = {*sys.stdlib_module_names, "numpy", "tttnn"}
    assert roots_of(module.body) <= allowed
    exceptions = IMPORTED_LATE.get(path.relative_to(PACKAGE).as_posix(), set())
    assert roots_of(ast.walk(module)) - allowed == exceptions


def test_an_exception_of_the_ground_floor_is_a_file_of_it():
    for name in IMPORTED_LATE:
        assert room_of(PACKAGE / name) in GROUND
        assert (PACKAGE / name).is_file()


def heavy_modules_of(statement):
    program = f"import sys; {statement}; print(*{HEAVY} & set(sys.modules))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    "module",
    [
        *("tttnn", "tttnn.index", "tttnn.adaptation", "tttnn.methods", "tttnn.evaluation.options", "tttnn.report"),
        "tttnn.cli.main",
    ],
)
def test_an_import_loads_no_heavy_library(module):
    assert heavy_modules_of(f"import {module}") == []


@pytest.mark.parametrize("name", tttnn.__all__)
def test_a_public_name_resolves(name):
    assert getattr(tttnn, name) is not None


@parametrize_files([path for path in FILES if path.name == "__init__.py" and room_of(path) != SELF_CONTAINED])
def test_every_name_of_a_door_resolves(path):
    room = import_module(package_of(path))
    for name in getattr(room, "__all__", []):
        assert getattr(room, name) is not None
        assert name in dir(room)


def public_functions():
    """Functions of the doors, and methods of their classes but for those that a class outside of tttnn has too."""
    for path in FILES:
        room = import_module(package_of(path)) if path.name == "__init__.py" else None
        for value in (getattr(room, name) for name in getattr(room, "__all__", [])):
            if inspect.isfunction(value):
                yield value
            elif inspect.isclass(value):
                bases = [base for base in value.__mro__ if not base.__module__.startswith("tttnn")]
                inherited = {name for base in bases for name in dir(base)} - {"__init__"}
                if is_dataclass(value):
                    inherited.add("__init__")  # of its fields
                for name in {*vars(value)} - inherited:
                    method = inspect.unwrap(getattr(vars(value)[name], "__func__", vars(value)[name]))
                    if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
                        yield method


def test_no_flag_is_passed_by_position():
    """Any value is a flag: `open_index(folder, [0, 1])` would mean to verify, not the shards 0 and 1."""
    functions = {function.__qualname__: function for function in public_functions()}
    assert {"open_index", "read_documents", "NeighborRetriever.from_pretrained", "Embedder.__init__"} <= {*functions}
    flags = []
    for name, function in functions.items():
        for parameter in inspect.signature(function).parameters.values():
            by_position = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if by_position and re.search(r"\bbool\b", inspect.formatannotation(parameter.annotation)):
                flags.append(f"{name}({parameter.name})")
    assert flags == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tttnn.no_such_name
