"""
What the docs show, runs: README, every page under docs/, and the examples in the docstrings of tttnn.

A page is run from top to bottom in a separate folder. Its `python` blocks share one namespace, its `pycon` blocks
are doctests, and its shell lines that call `tttnn` or a program in `examples/` are run in this process, without their
launcher. Tiny parts from conftest.py stand for what a reader brings, so that nothing is fetched:

- Names that a page uses without making them: `model`, `tokenizer`, `test_set` (two documents), `trainer`, and `train`,
  which changes every weight; in docstrings also the public names of tttnn. `model.generate(...)`, with the three dots
  as they stand, continues a prompt.
- Files: `my_corpus/`, `train/`, `corpus.jsonl`, `test.jsonl`, `validation.jsonl`, `pile-test.jsonl.zst`; `my-index`,
  unless the page builds it.
- Names in `HUB`: `from_pretrained` and `load_dataset` are replaced, and give the tiny parts for them. Any other name
  that is no folder is an error here too.

Of other shell lines only `make` is looked at: its target must exist. A block under `<!-- not run: REASON -->` must
compile.
"""

import ast
import copy
import doctest
import json
import re
import runpy
import shlex
import shutil
import sys
from enum import Enum
from importlib import import_module
from pathlib import Path

import datasets
import pyarrow
import pytest
import torch
import transformers
from conftest import TEXTS

import tttnn
from tttnn import Embedder, NeighborRetriever, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation.presets import PRESETS
from tttnn.cli.main import main
from tttnn.evaluation.pile import TASKS
from tttnn.methods import METHODS


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MODULES = sorted((ROOT / "tttnn").rglob("*.py"))

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
HUB = {
    "gpt2",
    EMBEDDER,
    "tttlm",
    "user/my-corpus",
    "user/my-index",
    "user/pile-index",
    "user/pile-test",
}
FENCE = re.compile(r"^(?P<mark><!-- not run: .+ -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)

# sixty different texts, since the preset wants fifty neighbors
CORPUS = [f"{TEXTS[row % 10]}\n{TEXTS[(row + row // 10 + 1) % 10]}" for row in range(60)]
PILE = [
    {"text": text, "meta": {"pile_set_name": name}}
    for name, texts in (("Github", CORPUS[:5]), ("ArXiv", CORPUS[5:9]))
    for text in texts
]


def on_hub(name):
    """Whether a name stands for something on the Hub; a folder does not, and an unknown name is a mistake."""
    assert Path(name).is_dir() or name in HUB, f"{name!r} is no folder and not in `HUB`"
    return not Path(name).is_dir()


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def saved_index(embedder, tmp_path_factory):
    retriever = NeighborRetriever.from_documents(CORPUS, Embedder(copy.deepcopy(embedder)))
    retriever.index.embedder["name"] = EMBEDDER
    return retriever.save_pretrained(tmp_path_factory.mktemp("hub") / "index")


@pytest.fixture
def hub(monkeypatch, tiny_models, tokenizer, embedder, saved_index):
    """Names in `HUB` give tiny parts."""
    load_model = transformers.AutoModelForCausalLM.from_pretrained
    load_tokenizer = transformers.AutoTokenizer.from_pretrained
    init_embedder = Embedder.__init__

    def model_of(name, **options):
        return copy.deepcopy(tiny_models["gpt2"]) if on_hub(name) else load_model(name, **options)

    def tokenizer_of(name, **options):
        return tokenizer if on_hub(name) else load_tokenizer(name, **options)

    def init_tiny_embedder(self, model, revision=None, max_seq_length=None, device=None, *prompts):
        if not isinstance(model, str) or not on_hub(model):
            init_embedder(self, model, revision, max_seq_length, device, *prompts)
            return
        tiny = copy.deepcopy(embedder)
        tiny.max_seq_length = max_seq_length or 128
        init_embedder(self, tiny, None, None, None, *prompts)
        self.name = model

    def index_of(name, **options):
        assert on_hub(name)
        return saved_index

    def dataset_of(path, **options):
        assert on_hub(path)
        return PILE

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model_of)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer_of)
    monkeypatch.setattr(Embedder, "__init__", init_tiny_embedder)
    monkeypatch.setattr("tttnn.index.hub.transfer.snapshot_download", index_of)
    monkeypatch.setattr(datasets, "load_dataset", dataset_of)


@pytest.fixture
def folder(tmp_path, monkeypatch, saved_index):
    """A working folder with the files that the pages name."""
    folder = tmp_path / "work"
    for name in ("my_corpus", "train"):
        (folder / name).mkdir(parents=True)
    for row, text in enumerate(CORPUS):
        # the first ones are long enough for the quickstart to hold a passage of them out
        (folder / "my_corpus" / f"{row:02}.txt").write_text("\n".join(CORPUS[:30]) if row < 2 else text)
    write_jsonl(folder / "train" / "train.jsonl", [{"text": text} for text in CORPUS])
    write_jsonl(folder / "corpus.jsonl", [{"url": f"u/{row}", "body": text} for row, text in enumerate(CORPUS)])
    write_jsonl(folder / "test.jsonl", [{"text": text} for text in TEXTS[:2]])
    write_jsonl(folder / "validation.jsonl", [{"text": text} for text in TEXTS[2:4]])
    with pyarrow.output_stream(folder / "pile-test.jsonl.zst", compression="zstd") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in PILE).encode())
    shutil.copytree(saved_index, folder / "my-index")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def namespace(hub, folder, model, tokenizer):
    """The names that a page may use without making them."""
    generate = model.generate

    def generate_something(*inputs, **options):
        if inputs == (...,):
            inputs, options = (torch.tensor([[1, 2]], device=model.device),), {"max_new_tokens": 2}
        return generate(*inputs, **options)

    def train(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1

    model.generate = generate_something
    return {
        "__name__": "__main__",
        "model": model,
        "tokenizer": tokenizer,
        "test_set": [{"id": "parse", "text": TEXTS[0] * 2}, {"id": "whale", "text": TEXTS[2] * 2}],
        "trainer": TestTimeTrainer(
            model,
            TestTimeTrainingArguments(num_neighbors=4, disable_tqdm=True),
            NeighborRetriever.from_pretrained("user/my-index"),
            processing_class=tokenizer,
        ),
        "train": train,
    }


def run_page(text, name, namespace, monkeypatch):
    """Run the blocks of a page in their order."""
    for block in FENCE.finditer(text):
        language, code = block["language"], block["code"]
        # a traceback names the line of the page
        padded = "\n" * text[: block.start("code")].count("\n") + code
        if language == "python":
            compiled = compile(padded, name, "exec")
            if block["mark"] is None:
                exec(compiled, namespace)
        elif language == "pycon":
            test = doctest.DocTestParser().get_doctest(code, {}, name, name, 0)
            test.globs, failures = namespace, []
            doctest.DocTestRunner().run(test, out=failures.append, clear_globs=False)
            assert not failures, "".join(failures)
        elif language in ("bash", "sh", "shell", "console"):
            for line in code.replace("\\\n", " ").splitlines():
                run_shell_line(line, monkeypatch)


def run_shell_line(line, monkeypatch):
    words = shlex.split(line, comments=True)
    programs = [place for place, word in enumerate(words) if word == "tttnn" or word.startswith("examples/")]
    if words[:1] == ["make"]:
        for target in words[1:]:
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M), line
    elif programs:
        program, *arguments = words[programs[0] :]
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            if program == "tttnn":
                assert main(arguments) == 0, line
            else:
                monkeypatch.syspath_prepend(ROOT / "examples")
                runpy.run_path(str(ROOT / program), run_name="__main__")
        except SystemExit as stop:
            assert stop.code == 0, line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_runs(path, namespace, folder, monkeypatch):
    text = path.read_text(encoding="utf-8")
    if "--output my-index" in text:
        (folder / "my-index").rename(folder / "built-before")
    run_page(text, str(path), namespace, monkeypatch)


def test_a_block_that_fails_is_seen_at_its_line(namespace, monkeypatch):
    with pytest.raises(ZeroDivisionError) as error:
        run_page("# Page\n\n```python\none = 1\none / 0\n```\n", "page.md", namespace, monkeypatch)
    last = error.traceback[-1]
    assert (last.path, last.lineno + 1) == ("page.md", 5)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("pycon", ">>> 1 + 1\n3"),
        ("bash", "tttnn retrieve my-index whale --no-such-option"),
        ("bash", "tttnn retrieve no-such-index whale"),
        ("bash", "tttnn evaluate --model gpt2 --index my-index --dataset test.jsonl --no-such-option"),
        ("bash", "torchrun --nproc_per_node 2 examples/quickstart.py --no-such-option"),
        ("bash", "make no-such-target"),
    ],
)
def test_a_wrong_block_fails(language, code, namespace, monkeypatch):
    with pytest.raises(AssertionError):
        run_page(f"```{language}\n{code}\n```\n", "page.md", namespace, monkeypatch)


def test_only_a_block_that_says_why_is_not_run(namespace, monkeypatch):
    block = "```python\n1 / 0\n```\n"
    run_page(f"<!-- not run: it divides by zero -->\n{block}", "page.md", namespace, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        run_page(f"<!-- not run: -->\n{block}", "page.md", namespace, monkeypatch)


def docstring_examples():
    """Every example in a docstring of tttnn, with its place."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                if "```" in docstring:
                    place = path.relative_to(ROOT).with_suffix("").as_posix()
                    name = place if isinstance(node, ast.Module) else f"{place}:{node.name}"
                    yield pytest.param(docstring, id=name)


@pytest.mark.parametrize("docstring", list(docstring_examples()))
def test_an_example_in_a_docstring_runs(docstring, namespace, monkeypatch):
    assert len(list(FENCE.finditer(docstring))) == docstring.count("```") / 2
    public = {name: getattr(tttnn, name) for name in tttnn.__all__}
    run_page(docstring, "docstring", {**public, **namespace}, monkeypatch)


def table_rows(text):
    """The cells of every row of a page's tables, but for the rules under their headers."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if set("".join(row)) - set("-: ")]


@pytest.mark.parametrize(
    "command",
    [
        "build-index",
        "add",
        "import-tttlm",
        "push",
        "pull",
        "info",
        "retrieve",
        "cluster",
        "tune",
        "train-experts",
        "evaluate",
        "report",
        "generate",
        "serve",
        "demo",
    ],
)
def test_the_command_line_page_has_every_option(command, capsys):
    page = (DOCS / "reference" / "command-line.md").read_text()
    section = page.split(f"## tttnn {command}\n")[1].split("\n## ")[0]
    shown = {option for row in table_rows(section) for option in re.findall(r"--[\w-]+", row[0])}
    with_method = command in ("evaluate", "generate", "serve", "demo")  # the help is that of a method
    for method in METHODS if with_method else [None]:
        with pytest.raises(SystemExit):
            main([command, *(["--method", method] if method else []), "--help"])
    options = set(re.findall(r"^  (?:-h, )?(?:--\w+ .*?, )?(--[\w-]+)", capsys.readouterr().out, re.M))
    options -= {"--help"}
    if command in ("generate", "serve", "demo"):  # what it shares is shown once
        section = page.split("## tttnn evaluate\n")[1].split("\n## ")[0]
        options -= {option for row in table_rows(section) for option in re.findall(r"--[\w-]+", row[0])}
    assert shown == options


def test_the_tree_names_every_file_of_the_package():
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```text\ntttnn/\n")[1].split("```")[0]
    folders, named = {0: Path()}, set()
    for indent, name in re.findall(r"^( +)([\w./]+)", tree, re.M):
        path = folders[len(indent) - 2] / name
        if name.endswith("/"):
            folders[len(indent)] = path
        else:
            named.add(path.as_posix())
    files = {path.relative_to(ROOT / "tttnn").as_posix() for path in MODULES}
    assert named == {name for name in files if name == "__init__.py" or not name.endswith("/__init__.py")}


def test_every_name_of_a_door_is_in_the_reference():
    pages = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    shown = {name.split(".")[-1] for name in re.findall(r"^::: (\S+)$", pages, re.M)}
    for path in MODULES:
        if path.name == "__init__.py" and path.parent.name != "cli":  # it has a separate page, with its options
            door = import_module(".".join(path.relative_to(ROOT).parent.parts))
            names = {name for name in getattr(door, "__all__", []) if not name.isupper()}
            assert names <= shown, f"`{path}` hands out names that no page under docs/reference/ shows"


def test_the_preset_table_has_every_field_with_its_values(tmp_path):
    default = TestTimeTrainingArguments(output_dir=str(tmp_path))
    preset = TestTimeTrainingArguments.from_preset("tttlm", output_dir=str(tmp_path))
    words = {"None": "none", "True": "yes", "False": "no"}
    expected = {}
    for name in PRESETS["tttlm"]:
        values = [getattr(arguments, name) for arguments in (default, preset)]
        values = [str(value.value if isinstance(value, Enum) else value) for value in values]
        expected[f"`{name}`"] = [words.get(value, value) for value in values]
    expected["`chunks_per_neighbor`"] = ["1", "all"]
    page = (DOCS / "how-to" / "pile.md").read_text().split("## The preset")[1]
    assert {row[0]: row[1:3] for row in table_rows(page)[1:]} == expected


def test_the_table_of_tasks_has_every_weight():
    page = (DOCS / "how-to" / "pile.md").read_text().split("## Tasks and weights")[1].split("\n## ")[0]
    cells = [pair for row in table_rows(page)[1:] for pair in (row[:2], row[2:])]
    assert {task: float(weight) for task, weight in cells} == {task: weight for task, (_, weight) in TASKS.items()}


def source_messages():
    """Every string of tttnn, with an ellipsis for each value that is put in."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_of_the_errors_page_is_one_of_the_code():
    page = (DOCS / "how-to" / "errors.md").read_text().split("\n## Index and retrieval\n")[1]  # after the classes
    cells = [row[0] for row in table_rows(page)]
    quoted = [re.search("`(.+)`", cell)[1] for cell in cells if "`" in cell]
    messages = list(source_messages())
    assert len(quoted) > 20
    for quote in quoted:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in quote.split("…")), re.S)
        assert any(pattern.search(message) for message in messages), f"no error of tttnn reads {quote!r}"
