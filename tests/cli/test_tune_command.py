"""`tttnn tune`: what it prints and writes, and that `tttnn evaluate --preset` takes its file."""

import json

import pytest
from commands import run_main
from conftest import TEXTS

from tttnn import NeighborRetriever


@pytest.fixture(scope="module")
def long_index(embedder, tmp_path_factory):
    """An index of rows that are long enough to be measured on."""
    texts = [f"{text}\n{TEXTS[row - 1]}\n{TEXTS[row - 3]}" for row, text in enumerate(TEXTS)]
    return NeighborRetriever.from_documents(texts, embedder).save_pretrained(tmp_path_factory.mktemp("index") / "long")


@pytest.fixture
def tuning(model_folder, long_index, embedder_folder, tmp_path):
    """The words of a small tuning; later options override earlier ones."""
    options = ["--num-documents", 3, "--num-neighbors", 2, "--max-length", 16, "--learning-rates", 1e-3]
    folders = ["--embedder", embedder_folder, "--output-dir", tmp_path / "t"]
    return ["tune", model_folder, long_index, *folders, *options, "--use-cpu", "True"]


def test_a_tuning_prints_a_table_and_where_the_file_is(tuning, tmp_path, capsys):
    assert run_main(*tuning) == 0
    output = capsys.readouterr().out.splitlines()
    methods = [line.split("|")[1].strip() for line in output if line.startswith("| ")]
    assert methods == ["method", "prefix", *["context"] * 2, *["ttt"] * 4, *["context+ttt"] * 2]
    path = tmp_path / "t" / "tuned.json"
    assert output[-1] == f"The settings are in {path}. To use them: tttnn evaluate --preset {path}"
    settings = json.loads(path.read_text())["settings"]
    assert f"{settings['num_neighbors']} neighbors, learning rate 0.001, mix {settings['mix']}." in output[-2]


def test_an_evaluation_takes_the_file_and_refuses_another_index(
    tuning, evaluation, long_index, embedder_folder, tmp_path, capsys
):
    assert run_main(*tuning, "--output", tmp_path / "mine.json", "--num-neighbors", 1) == 0
    place = evaluation.index("--num-neighbors")
    words = [*evaluation[:place], "--use-cpu", "--preset", tmp_path / "mine.json", "--limit", 1]
    assert run_main(*words, "--index", long_index, "--embedder", embedder_folder) == 0
    settings = json.loads((tmp_path / "run" / "journal-eval.jsonl").read_text().splitlines()[0])["settings"]
    assert (settings["num_neighbors"], settings["learning_rate"], settings["max_length"]) == (1, 1e-3, 16)
    capsys.readouterr()
    assert run_main(*words, "--output-dir", tmp_path / "other") == 1
    assert "'mine.json' was measured on the index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-documents", 1], "`num_documents` is 1"),
        (["--num-neighbors", 10], "Pass at most 9 as `num_neighbors`"),
        (["--max-document-bytes", -1], "`max_document_bytes` is -1"),
        (["--learning-rates", 0], "`learning_rates` has 0.0"),
    ],
)
def test_a_wrong_tuning_is_told(tuning, options, message, capsys):
    assert run_main(*tuning, *options) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_is_missing_is_told(tuning, capsys):
    assert run_main("tune", "/missing/model", *tuning[2:]) == 1
    assert "The model '/missing/model' cannot be loaded" in capsys.readouterr().err
