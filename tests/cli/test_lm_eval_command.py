"""`tttnn lm-eval`: the harness's own command line, with the model type `tttnn`."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest
from commands import run_main
from conftest import TEXTS


TASK = """task: questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def harness(model_folder, index_folder, tmp_path_factory):
    """Run the harness on two questions, of which one stands in the corpus; gives what it printed."""
    folder = tmp_path_factory.mktemp("harness")
    rows = [
        {"question": TEXTS[2], "choices": [" yes", " no"], "answer": 0},
        {"question": "The captain wrote", "choices": [" a song", " in the log"], "answer": 1},
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "questions.yaml").write_text(TASK.format(data=data))

    def run(method):
        args = f"pretrained={model_folder},method={method}"
        if method != "none":
            args += f",index={index_folder},num_neighbors=2,neighbor_length=32,learning_rate=0.05"
        words = ["--model_args", args, "--tasks", "questions", "--include_path", folder / "tasks", "--device", "cpu"]
        with redirect_stdout(StringIO()) as output:
            status = run_main("lm-eval", *words, "--output_path", folder / method)
        return status, output.getvalue()

    return folder, run


@pytest.fixture(scope="module")
def runs(harness):
    """The folders of two runs, and what the second printed."""
    folder, run = harness
    assert run("none")[0] == 0
    status, output = run("ttt")
    assert status == 0
    return folder / "none", folder / "ttt", output


def test_a_run_is_written_and_shown_without_near_copies(runs):
    _, folder, output = runs
    assert "Without the items that have near-copies" in output
    assert output.splitlines()[-1].split()[:3] == ["without", "near-copies", "1"]
    (path,) = folder.glob("*/results_*.json")
    assert json.loads(path.read_text())["config"]["tttnn"]["settings"]["method"] == "ttt"


def test_two_runs_are_compared_item_by_item(runs, tmp_path, capsys):
    base, folder, _ = runs
    path = tmp_path / "numbers.json"
    assert run_main("lm-eval", "compare", folder, base, "--output", path) == 0
    head, row, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["task", "metric", "items", "baseline", "run", "difference"]
    assert row.split()[:3] == ["questions", "acc", "2"]
    (result,) = json.loads(path.read_text())["results"]
    assert result["num_items"] == 2
    assert result["without_near_copies"]["interval"] == [None, None], "of one item there is none"


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    assert run_main("lm-eval", "compare", tmp_path) == 1
    assert "has no results of lm-evaluation-harness" in capsys.readouterr().err


def test_the_help_says_what_the_words_are(capsys):
    with pytest.raises(SystemExit, match="0"):
        run_main("lm-eval", "--help")
    assert "run --help` lists them" in " ".join(capsys.readouterr().out.split())
