"""The Pile's tasks, weights and sample, and `examples/pile_eval.py` from files to the table."""

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
import zstandard
from conftest import TEXTS

from tttnn import Document
from tttnn.evaluation.pile import TASKS, parse_tasks, pile_weights, select_documents, task_of


SCRIPT = Path(__file__).parents[2] / "examples" / "pile_eval.py"

# Source: table 1 of The Pile (arXiv 2101.00027), column "Weight".
WEIGHTS = {
    "Pile-CC": "18.11",
    "PubMed Central": "14.40",
    "Books3": "12.07",
    "OpenWebText2": "10.01",
    "ArXiv": "8.96",
    "Github": "7.59",
    "FreeLaw": "6.12",
    "StackExchange": "5.13",
    "USPTO Backgrounds": "3.65",
    "PubMed Abstracts": "3.07",
    "Gutenberg (PG-19)": "2.17",
    "OpenSubtitles": "1.55",
    "Wikipedia (en)": "1.53",
    "DM Mathematics": "1.24",
    "Ubuntu IRC": "0.88",
    "BookCorpus2": "0.75",
    "EuroParl": "0.73",
    "HackerNews": "0.62",
    "YoutubeSubtitles": "0.60",
    "PhilPapers": "0.38",
    "NIH ExPorter": "0.30",
    "Enron Emails": "0.14",
}
# Bits per byte of GPT-2 before training and after 50 neighbors, and their weighted sum; source: the result files
# published with arXiv 2305.18466.
PUBLISHED = {
    "arxiv": (1.3169, 1.1132),
    "bookcorpus2": (1.0679, 1.0839),
    "books3": (1.1761, 1.1298),
    "dm-mathematics": (1.5466, 1.0763),
    "enron": (1.5117, 0.9085),
    "europarl": (2.3502, 1.3805),
    "freelaw": (1.0400, 0.8606),
    "github": (1.9184, 0.6907),
    "gutenberg": (1.4045, 1.2681),
    "hackernews": (1.4262, 1.2329),
    "nih-exporter": (0.8956, 0.8063),
    "opensubtitles": (1.2685, 1.0392),
    "openwebtext2": (1.1089, 1.0406),
    "philpapers": (1.4106, 1.2259),
    "pile-cc": (1.0831, 1.0218),
    "pubmed-abstracts": (0.9602, 0.8739),
    "pubmed-central": (1.0418, 0.8932),
    "stackexchange": (1.2994, 1.0413),
    "ubuntu-irc": (1.3960, 1.2225),
    "uspto": (0.8647, 0.7372),
    "wikipedia": (1.1266, 0.9563),
    "youtubesubtitles": (1.7985, 1.5763),
}
PUBLISHED_PILE_ALL = (1.2079, 0.9922)


def test_the_tasks_have_the_weights_of_the_pile():
    assert {set_name: Decimal(str(weight)) for set_name, weight in TASKS.values()} == {
        set_name: Decimal(weight) for set_name, weight in WEIGHTS.items()
    }


def test_the_weights_sum_to_a_hundred_percent():
    assert len(TASKS) == 22
    assert sum(Decimal(str(weight)) for _, weight in TASKS.values()) == 100


def test_the_weights_give_the_published_total():
    name, weights = pile_weights(TASKS)
    assert name == "pile_all"
    assert sum(weights.values()) == pytest.approx(1)
    for column, expected in enumerate(PUBLISHED_PILE_ALL):
        # the figures are rounded to four places
        total = sum(weights[task] * values[column] for task, values in PUBLISHED.items())
        assert total == pytest.approx(expected, abs=1e-4)


def test_the_weights_of_a_part_of_the_tasks_are_scaled_to_a_sum_of_one():
    name, weights = pile_weights(["github", "arxiv"])
    assert name == "weighted_mean"
    # 7.59 + 8.96 = 16.55
    assert weights == {"github": pytest.approx(7.59 / 16.55), "arxiv": pytest.approx(8.96 / 16.55)}
    assert pile_weights(["enron"]) == ("weighted_mean", {"enron": 1.0})


@pytest.mark.parametrize("missing", TASKS)
def test_pile_all_needs_every_task(missing):
    name, weights = pile_weights([task for task in TASKS if task != missing])
    assert name == "weighted_mean"
    assert missing not in weights
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        ("all", list(TASKS)),
        ("github", ["github"]),
        ("uspto, arxiv ,github", ["arxiv", "github", "uspto"]),
        (["github", "arxiv"], ["arxiv", "github"]),
        ("github,github", ["github"]),
        ("github,all", list(TASKS)),
    ],
)
def test_tasks_are_chosen_by_name(names, tasks):
    assert parse_tasks(names) == tasks


@pytest.mark.parametrize(
    ("names", "unknown"), [("gitlab", "gitlab"), ("github,Github", "Github"), ("github,", ""), ("", "")]
)
def test_an_unknown_task_is_refused(names, unknown):
    with pytest.raises(ValueError, match=f"There is no Pile task '{unknown}'. Choose from: all, arxiv, "):
        parse_tasks(names)


def make_documents(**counts):
    """Documents of several tasks, one of each in turn: `github-0`, `arxiv-0`, `github-1`, ..."""
    tasks = {name.replace("_", "-"): count for name, count in counts.items()}
    return [
        Document(f"{task}-{number}", f"text {number}", {"pile_set_name": TASKS[task][0]})
        for number in range(max(tasks.values()))
        for task, count in tasks.items()
        if number < count
    ]


def sample_of_the_authors(count):
    """The protocol of the official code, on a list of numbers."""
    rows = list(range(count))
    random.Random(1216).shuffle(rows)
    return rows[: int(0.2 * count)]


@pytest.mark.parametrize("counts", [{"github": 60, "arxiv": 31}, {"pile_cc": 5, "enron": 9, "uspto": 14}])
def test_the_documents_are_those_of_the_authors(counts):
    documents = make_documents(**counts)
    selected = select_documents(documents, list(TASKS))
    assert {task: [document.id for document in members] for task, members in selected.items()} == {
        name.replace("_", "-"): [f"{name.replace('_', '-')}-{row}" for row in sample_of_the_authors(count)]
        for name, count in counts.items()
    }


def test_the_sample_of_ten_is_this_one():
    """By Python's own generator, whose shuffle is the same since version 3.2; not that of `datasets`."""
    selected = select_documents(make_documents(github=10), ["github"])
    assert [document.id for document in selected["github"]] == ["github-6", "github-2"]


def test_a_limit_takes_the_first_of_the_sample():
    documents = make_documents(github=60, arxiv=10)
    selected = select_documents(documents, ["arxiv", "github"], limit=3)
    assert [document.id for document in selected["github"]] == [
        f"github-{row}" for row in sample_of_the_authors(60)[:3]
    ]
    assert len(selected["arxiv"]) == 2


def test_a_fraction_of_one_takes_all():
    selected = select_documents(make_documents(github=7), ["github"], fraction=1.0)
    assert Counter(document.id for document in selected["github"]) == Counter(f"github-{row}" for row in range(7))


def test_only_tasks_that_are_asked_for_and_there_are_selected():
    documents = make_documents(github=10, arxiv=10, enron=4)
    # a fifth of four is less than one document
    assert list(select_documents(documents, ["enron", "github", "uspto"])) == ["github"]


@pytest.mark.parametrize(("tasks", "counts"), [(["uspto"], {"github": 10}), (["github"], {"github": 4})])
def test_an_empty_selection_is_refused(tasks, counts):
    with pytest.raises(ValueError, match=f"No document is left: .* none of the tasks {tasks[0]}"):
        select_documents(make_documents(**counts), tasks)


@pytest.mark.parametrize(
    "options", [{"fraction": -0.2}, {"fraction": 0.0}, {"fraction": 1.5}, {"fraction": math.nan}], ids=str
)
def test_a_wrong_fraction_is_refused(options):
    with pytest.raises(ValueError, match="`fraction` is"):
        select_documents(make_documents(github=20), ["github"], **options)


@pytest.mark.parametrize("limit", [-1, 0])
def test_a_wrong_limit_is_refused(limit):
    with pytest.raises(ValueError, match="`limit` is"):
        select_documents(make_documents(github=20), ["github"], limit=limit)


@pytest.mark.parametrize("metadata", [{}, {"pile_set_name": "GitHub"}, {"pile_set_name": None}])
def test_a_document_of_no_known_task_is_refused(metadata):
    with pytest.raises(ValueError, match="Document 'stray' has the `pile_set_name` (None|'GitHub')"):
        select_documents([*make_documents(github=10), Document("stray", "text", metadata)], ["arxiv"])


@pytest.mark.parametrize("task", TASKS)
def test_a_document_belongs_to_the_task_of_its_set(task):
    assert task_of(Document("d", "text", {"pile_set_name": TASKS[task][0]})) == task


# --- examples/pile_eval.py ---


@pytest.fixture(scope="session")
def pile_eval():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("pile_eval", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pile_eval"] = module  # its dataclass is looked up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parts(tiny_models, tokenizer, retriever, tmp_path_factory):
    """The arguments that name a tiny model, an index and the setting."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_models["gpt2"].save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    retriever.save_pretrained(folder / "index")
    options = {"model": folder / "model", "index": folder / "index", "num_neighbors": 3, "max_length": 32}
    options |= {"learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True}
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def pile_row(task, number):
    return {"text": f"{number} {TEXTS[number % 10]}", "meta": {"pile_set_name": TASKS[task][0]}}


def write_rows(path, rows):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    path.write_bytes(zstandard.compress(lines) if path.suffix == ".zst" else lines)
    return str(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two files: 10 documents of GitHub alone, and 15 of arXiv among 10 of Enron's mails."""
    folder = tmp_path_factory.mktemp("pile")
    mixed = [pile_row(task, number) for number in range(15) for task in ("arxiv", "enron")[: 1 + (number < 10)]]
    return [
        write_rows(folder / "00.jsonl", [pile_row("github", number) for number in range(10)]),
        write_rows(folder / "01.jsonl.zst", mixed),
    ]


def run_script(pile_eval, monkeypatch, capsys, arguments):
    """Run the script in this process; gives what it prints."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    capsys.readouterr()
    pile_eval.main()
    return capsys.readouterr().out


def table_in(output):
    """The rows of a table, by the first cell, without the seconds."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0][-1] == "seconds"
    return {row[0]: row[1:-1] for row in rows[2:]}


def records_in(folder):
    """The records of all processes."""
    lines = [line for path in folder.glob("journal-eval*.jsonl") for line in path.read_text().splitlines()[1:]]
    return sorted(map(json.loads, lines), key=lambda record: record["index"])


def bits_per_byte(records, position):
    nats = sum(record["nll"][position] for record in records)
    return nats / sum(record["num_bytes"] for record in records) / math.log(2)


def figures_of(records):
    """What a row says of its documents, by hand: how many, how many worse, before, after, ratio, difference."""
    before, after = bits_per_byte(records, 0), bits_per_byte(records, -1)
    worse = sum(record["nll"][-1] > record["nll"][0] for record in records)
    return [len(records), worse, before, after, after / before, after - before]


def assert_row(row, figures):
    documents, worse, before, after, ratio, difference = row
    count, num_worse, *values = figures
    assert (documents, worse) == (str(count), str(num_worse))
    assert [before, after] == [f"{value:.4f}" for value in values[:2]]
    assert ratio == f"{values[2]:.3f}"
    assert difference.split(" ")[0] == f"{values[3]:+.4f}"


def test_the_script_gives_a_row_per_task_and_their_weighted_mean(
    pile_eval, parts, dataset, tmp_path, monkeypatch, capsys
):
    options = ["--tasks", "github,arxiv", "--output_dir", tmp_path, "--dataset", *dataset]
    output = run_script(pile_eval, monkeypatch, capsys, [*parts, *options])
    records = records_in(tmp_path)
    # of 15 documents of arXiv the first three of the authors' order, of ten of GitHub the first two
    lines = [f"01.jsonl.zst:{1 + min(2 * row, row + 10)}" for row in sample_of_the_authors(15)]
    lines += [f"00.jsonl:{1 + row}" for row in sample_of_the_authors(10)]
    assert [record["id"] for record in records] == lines
    table, by_task = table_in(output), {"arxiv": records[:3], "github": records[3:]}
    assert list(table) == ["arxiv", "github", "weighted_mean", "pooled, unweighted"]
    for task, members in by_task.items():
        assert {record["metadata"]["pile_set_name"] for record in members} == {TASKS[task][0]}
        assert_row(table[task], figures_of(members))
    before, after = (
        (8.96 * bits_per_byte(by_task["arxiv"], position) + 7.59 * bits_per_byte(by_task["github"], position)) / 16.55
        for position in (0, -1)
    )
    worse = figures_of(records)[1]
    assert_row(table["weighted_mean"], [5, worse, before, after, after / before, after - before])
    assert_row(table["pooled, unweighted"], figures_of(records))
    assert "Seconds by phase" in output
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert results["eval_bits_per_byte"] == pytest.approx(bits_per_byte(records, -1))


def test_the_script_gives_pile_all_where_every_task_is_there(pile_eval, parts, tmp_path, monkeypatch, capsys):
    rows = [pile_row(task, number) for number in range(5) for task in TASKS]
    path = write_rows(tmp_path / "all.jsonl.zst", rows)
    options = ["--dataset", path, "--output_dir", tmp_path, "--num_neighbors", 1, "--query", "document"]
    table = table_in(run_script(pile_eval, monkeypatch, capsys, [*parts, *options]))
    records = records_in(tmp_path)
    assert list(table) == [*TASKS, "pile_all", "pooled, unweighted"]
    by_set = {record["metadata"]["pile_set_name"]: [record] for record in records}
    before, after = (
        sum(float(weight) / 100 * bits_per_byte(by_set[set_name], position) for set_name, weight in WEIGHTS.items())
        for position in (0, -1)
    )
    assert_row(table["pile_all"], [22, figures_of(records)[1], before, after, after / before, after - before])


def test_the_script_cuts_long_documents_between_characters(pile_eval, parts, tmp_path, monkeypatch, capsys):
    meta = {"pile_set_name": "Enron Emails"}
    texts = ["a" + "é" * 30, "短い文" * 10, "short", "x" * 20, "x" * 21]
    path = write_rows(tmp_path / "mails.jsonl", [{"text": text, "meta": meta} for text in texts])
    options = ["--fraction", 1, "--max_document_bytes", 20, "--query", "document"]
    options += ["--dataset", path, "--output_dir", tmp_path, "--num_neighbors", 1]
    run_script(pile_eval, monkeypatch, capsys, [*parts, *options])
    by_id = {record["id"]: record["num_bytes"] for record in records_in(tmp_path)}
    # 1 + 9 * 2 bytes, and 6 * 3
    assert by_id == {f"mails.jsonl:{line}": count for line, count in enumerate([19, 18, 5, 20, 20], 1)}


@pytest.mark.parametrize(
    ("text", "max_bytes", "kept"),
    [
        ("a🐳b", None, "a🐳b"),
        ("a🐳b", 6, "a🐳b"),
        ("a🐳b", 5, "a🐳"),
        ("a🐳b", 4, "a"),
        ("a🐳b", 1, "a"),
        ("e\u0301", 2, "e"),
        ("abc", 100, "abc"),
    ],
)
def test_a_cut_keeps_whole_characters_and_metadata(pile_eval, text, max_bytes, kept):
    document = pile_eval.cut(Document("d", text, {"pile_set_name": "Github"}), max_bytes)
    assert document == Document("d", kept, {"pile_set_name": "Github"})


@pytest.mark.parametrize("max_bytes", ["-5", "0"])
def test_a_wrong_cut_is_refused(max_bytes, pile_eval, parts, dataset, tmp_path, monkeypatch, capsys):
    options = ["--dataset", *dataset, "--output_dir", tmp_path, "--max_document_bytes", max_bytes]
    with pytest.raises(ValueError, match="max_document_bytes"):
        run_script(pile_eval, monkeypatch, capsys, [*parts, *options])


def test_untrained_documents_are_named(pile_eval, parts, dataset, tmp_path, monkeypatch, capsys):
    options = ["--tasks", "github", "--limit", 1, "--max_distance", 0, "--dataset", *dataset, "--output_dir", tmp_path]
    output = run_script(pile_eval, monkeypatch, capsys, [*parts, *options])
    row = sample_of_the_authors(10)[0]
    assert f"Could not be trained on; scored with the original model: 00.jsonl:{1 + row}" in output
    documents, *_, ratio, _ = table_in(output)["github"]
    assert (documents, ratio) == ("1", "1.000")


def test_the_script_reads_a_hub_data_set(pile_eval, parts, tmp_path, monkeypatch, capsys):
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return iter([pile_row("github", number) for number in range(10)])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    options = ["--dataset", "user/pile-test", "--split", "validation", "--output_dir", tmp_path]
    table = table_in(run_script(pile_eval, monkeypatch, capsys, [*parts, *options]))
    assert asked.items() >= {"path": "user/pile-test", "split": "validation", "streaming": True}.items()
    assert table["github"][0] == "2"


def test_a_finished_script_tells_the_same_again(pile_eval, parts, dataset, tmp_path, monkeypatch, capsys):
    options = ["--tasks", "github", "--dataset", *dataset, "--output_dir", tmp_path]
    first, again = (run_script(pile_eval, monkeypatch, capsys, [*parts, *options]) for _ in range(2))
    # from the table on: before it stands, without bars, how long the run took
    assert first[first.index("| task") :] == again[again.index("| task") :]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "gitlab"], "There is no Pile task 'gitlab'"),
        (["--tasks", "uspto"], "No document is left"),
        (["--preset", "tttln"], "There is no preset 'tttln'"),
    ],
)
def test_a_wrong_option_of_the_script_is_refused(
    options, message, pile_eval, parts, dataset, tmp_path, monkeypatch, capsys
):
    with pytest.raises(ValueError, match=message):
        run_script(pile_eval, monkeypatch, capsys, [*parts, "--dataset", *dataset, "--output_dir", tmp_path, *options])


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


@pytest.fixture(scope="module")
def launched(parts, dataset, tmp_path_factory):
    """What the script prints and keeps, started by `accelerate launch` with one process and by torchrun with two."""
    folder = tmp_path_factory.mktemp("launched")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf_home")}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", *launcher, SCRIPT, *parts, "--output_dir", folder / name, "--dataset", *dataset],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, launcher in LAUNCHERS.items()
    }
    outputs = {}
    for name, process in processes.items():
        outputs[name], errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return folder, outputs


@pytest.mark.slow
def test_two_processes_print_the_table_of_one(launched):
    folder, outputs = launched
    assert table_in(outputs["torchrun"]) == table_in(outputs["accelerate"])
    assert len(list((folder / "torchrun").glob("journal-eval*.jsonl"))) == 2
    one, two = (records_in(folder / name) for name in ("accelerate", "torchrun"))
    assert [record["id"] for record in one] == [record["id"] for record in two]
    for record, other in zip(one, two, strict=True):
        assert record["nll"] == pytest.approx(other["nll"], rel=1e-6)
        assert abs(record["nll"][-1] / record["nll"][0] - 1) > 1e-4  # training did something


@pytest.mark.slow
def test_a_launched_script_prints_the_table_of_a_plain_one(
    launched, pile_eval, parts, dataset, tmp_path, monkeypatch, capsys
):
    _, outputs = launched
    output = run_script(pile_eval, monkeypatch, capsys, [*parts, "--output_dir", tmp_path, "--dataset", *dataset])
    assert list(table_in(output)) == ["arxiv", "enron", "github", "weighted_mean", "pooled, unweighted"]
    assert table_in(outputs["accelerate"]) == table_in(output)


def test_a_budget_chooses_among_the_methods_that_take_the_options(
    parts, pile_eval, dataset, tmp_path, monkeypatch, capsys
):
    """The parts name a learning rate, so that a method without steps is out."""
    words = [*parts, "--dataset", *dataset, "--tasks", "github", "--limit", 1, "--fraction", 1]
    run_script(pile_eval, monkeypatch, capsys, [*words, "--budget", "balanced", "--output_dir", tmp_path / "run"])
    settings = json.loads((tmp_path / "run" / "journal-eval.jsonl").read_text().splitlines()[0])["settings"]
    assert settings["method"] in ("ttt", "context+ttt")
    assert (settings["num_neighbors"], settings["learning_rate"]) == (3, 1e-3)
