"""What a user gets from `pip install tttnn`: the contents of the wheel and the names it needs."""

import ast
import email
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tttnn
from tttnn.citation import CITATION


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIST_INFO = f"tttnn-{PROJECT['version']}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation the build uses the installed backend and needs no network.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(folder / f"tttnn-{PROJECT['version']}-py3-none-any.whl") as archive:
        yield archive


def normalized(requirement):
    """The name of a requirement as package indexes compare it: "lm_eval>=0.4" -> "lm-eval"."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_wheel_holds_every_module(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tttnn").rglob("*.py")}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == modules


@pytest.mark.parametrize(
    "name",
    [
        "tttnn/py.typed",
        "tttnn/metrics/bits_per_byte/bits_per_byte.py",
        "tttnn/methods/budget.json",
        "tttnn/report/page.html",
        "tttnn/report/published.json",
    ],
)
def test_the_wheel_holds(wheel, name):
    assert name in wheel.namelist()


def test_the_wheel_holds_nothing_but_the_package(wheel):
    assert {name.split("/")[0] for name in wheel.namelist()} == {"tttnn", DIST_INFO}


def test_the_wheel_holds_the_license(wheel):
    assert wheel.read(f"{DIST_INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_names_its_license_and_python(wheel):
    metadata = email.message_from_bytes(wheel.read(f"{DIST_INFO}/METADATA"))
    assert (metadata["Name"], metadata["License-Expression"]) == ("tttnn", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_wheel_installs_the_command(wheel):
    entry_points = ConfigParser()
    entry_points.read_string(wheel.read(f"{DIST_INFO}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"tttnn": "tttnn.cli.main:main"}


def test_every_import_is_a_declared_dependency():
    extras = PROJECT["optional-dependencies"]
    used = ("cpu", "gpu", "peft", "report", "serve", "lm-eval", "ray", "demo")
    declared = {*PROJECT["dependencies"], *(name for extra in used for name in extras[extra])}
    names = {normalized(requirement) for requirement in declared}
    distributions = packages_distributions()
    undeclared = {}
    for path in (ROOT / "tttnn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"tttnn"}:
                if names.isdisjoint(normalized(name) for name in distributions[module]):
                    undeclared[module] = path.name
    assert undeclared == {}


SCRIPTS = sorted([*(ROOT / "examples").rglob("*.py"), *(ROOT / "tests" / "benchmarks").glob("*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_what_the_package_has(path):
    """Imports inside of functions too, which nothing runs before a user does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "tttnn":
            module = importlib.import_module(node.module)
            for alias in node.names:
                found = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert found, f"'{path.name}' imports {alias.name} from {node.module}"


def test_every_dependency_is_pinned_for_reproduction():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalized(line) for line in lines if "==" in line}
    declared = {*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])}
    assert {normalized(requirement) for requirement in declared} - pinned == set()


def test_the_package_has_the_version():
    assert tttnn.__version__ == PROJECT["version"]


@pytest.mark.parametrize("name", ["README.md", "hub_cards/index/README.md", "hub_cards/bits_per_byte/README.md"])
def test_the_method_is_cited_alike_everywhere(name):
    assert f"```bibtex\n{CITATION}\n```" in (ROOT / name).read_text()


def test_the_metric_cites_the_method_as_the_library_does():
    assert f'"""\\\n{CITATION}\n"""' in (ROOT / "tttnn/metrics/bits_per_byte/bits_per_byte.py").read_text()


def test_the_citation_has_the_version():
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
