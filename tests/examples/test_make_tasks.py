"""The tasks with local data: `examples/make_tasks.py`, and the process in which a model's code runs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from make_tasks import BODIES, NAMES, counting, pronouns  # noqa: E402
from sandbox import cut, passes, process_results  # noqa: E402


TWICE = {"module": "json", "name": "twice", "prompt": "def twice(x):\n", "docstring": ">>> twice(2)\n4\n"}


def test_code_passes_if_its_doctests_do():
    assert passes(TWICE, "    return 2 * x\n")
    assert not passes(TWICE, "    return x\n")
    assert not passes(TWICE, "    return 2 *\n"), "no Python"
    assert not passes({**TWICE, "docstring": "says nothing"}, "    return 2 * x\n"), "nothing was tried"


def test_code_has_the_names_of_its_module():
    assert passes({**TWICE, "docstring": ">>> twice('2')\n4\n"}, "    return 2 * loads(x)\n")


@pytest.mark.parametrize(
    "body",
    [
        "    import os\n    os._exit(0)\n",
        "    raise SystemExit(0)\n",
    ],
)
def test_ending_early_is_no_pass(body):
    assert not passes(TWICE, body)


def test_code_that_does_not_end_or_takes_all_memory_is_stopped(monkeypatch):
    monkeypatch.setattr("sandbox.SECONDS", 1)
    start = time.monotonic()
    assert not passes(TWICE, "    while True: pass\n")
    assert not passes(TWICE, "    return len(bytearray(2 << 30)) and 4\n")
    assert time.monotonic() - start < 20


def test_code_cannot_write_large_files(tmp_path):
    path = tmp_path / "large"
    body = f"    open({str(path)!r}, 'wb').write(bytes(4 << 20))\n    return 2 * x\n"
    assert not passes(TWICE, body)
    assert path.stat().st_size <= 1 << 20


def test_a_completion_ends_with_the_function():
    assert cut("    return 1\n\n    # more\nprint(2)\n    return 3\n") == "    return 1\n\n    # more\n"
    assert process_results(TWICE, ["    return 2 * x\nraise ValueError\n"]) == {"pass@1": 1.0}


def test_sums_are_right_and_no_question_is_in_the_corpus():
    items, corpus = counting(20)
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
    for item in items:
        words = item["question"].split("?")[0].split("How many")[0].replace(",", "").split()
        assert item["answer"] == str(sum(numbers.get(word, 0) for word in words))
    assert len(items) == 20
    assert not any(item["question"] in text for item in items for text in corpus)


def test_pronouns_of_the_corpus_are_the_others():
    items, corpus = pronouns(4)
    assert items[0] == {"question": "The nurse said that", "choices": [" she", " he"], "answer": 0}
    assert corpus[0].startswith("The nurse explained that he ")


@pytest.mark.slow
def test_the_files_are_tasks_of_the_harness(tmp_path):
    words = ["--output", str(tmp_path), "--items", "3"]
    subprocess.run([sys.executable, str(EXAMPLES / "make_tasks.py"), *words], check=True, capture_output=True)
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    assert {*manager.all_tasks} == {f"tttnn_{name}" for name in BODIES}
    for name in NAMES:
        rows = (tmp_path / name / "items.jsonl").read_text().splitlines()
        assert len(rows) == 3
        config = yaml.load((tmp_path / name / f"{name}.yaml").read_text().replace("!function ", ""), yaml.SafeLoader)
        assert Path(config["dataset_kwargs"]["data_files"]["test"]).is_file()
    item = json.loads((tmp_path / "code" / "items.jsonl").read_text().splitlines()[0])
    assert passes(item, item["body"])
    corpus = (tmp_path / "code" / "corpus.jsonl").read_text()
    assert json.dumps(item["source"], ensure_ascii=False)[1:-1] not in corpus
