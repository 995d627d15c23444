"""What the tests of the command line share: tiny parts on disk, and a few words that run a command on them."""

import json

import pytest
import zstandard
from conftest import TEXTS

from tttnn.cli import main
from tttnn.index.manifest import MANIFEST


QUERY = "the captain and the whale"


@pytest.fixture(scope="session")
def model_folder(tiny_models, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models["gpt2"].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedder_folder(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved embedder")
    embedder.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def index_folder(retriever, tmp_path_factory):
    return retriever.save_pretrained(tmp_path_factory.mktemp("index") / "tiny")


@pytest.fixture
def test_set(documents, tmp_path):
    return write_rows(tmp_path / "test.jsonl", documents)


@pytest.fixture
def corpus(tmp_path):
    """The texts of conftest, a file each."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def build(embedder_folder, tmp_path):
    """Run `tttnn build-index` with the tiny embedder; gives the exit status."""

    def run(*arguments):
        return run_main("build-index", *arguments, "--output", tmp_path / "built", "--embedder", embedder_folder)

    return run


@pytest.fixture
def evaluation(model_folder, index_folder, test_set, tmp_path):
    """The arguments of an evaluation of tiny parts; later ones override earlier ones."""
    parts = ["--model", model_folder, "--index", index_folder, "--dataset", test_set]
    options = ["--output-dir", tmp_path / "run", "--num-neighbors", 4, "--max-length", 32, "--learning-rate", 1e-3]
    return ["evaluate", *parts, *options, "--use-cpu"]


def run_main(*arguments):
    return main([str(argument) for argument in arguments])


def write_rows(path, texts, column="text"):
    lines = "".join(json.dumps({column: text}, ensure_ascii=False) + "\n" for text in texts).encode("utf-8")
    path.write_bytes(zstandard.compress(lines) if path.suffix == ".zst" else lines)
    return path


def help_of(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_status:
        run_main(*command.split(), "--help")
    assert exit_status.value.code == 0
    return capsys.readouterr().out


def rename_embedder(index):
    manifest = json.loads((index / MANIFEST).read_text())
    manifest["embedder"]["name"] = "/moved/elsewhere"
    (index / MANIFEST).write_text(json.dumps(manifest))
