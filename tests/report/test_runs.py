"""What is read from the folders of runs: journals, settings, choices, and the published figures beside them."""

import json
import math
import re

import pytest
from made_runs import make_record, make_run, write_run, write_two_runs

from tttnn.evaluation.pile import pile_weights
from tttnn.journal import Journal
from tttnn.report.published import published_figures, published_for
from tttnn.report.runs import differing_settings, read_runs
from tttnn.report.trials import trials_of


@pytest.fixture
def two_runs(tmp_path):
    return write_two_runs(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-run"):
        read_runs([tmp_path / "no-such-run"])


def test_an_empty_folder_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="has no journal"):
        read_runs([tmp_path])


def test_of_a_file_the_folder_is_asked_for(two_runs):
    with pytest.raises(NotADirectoryError, match=f"Pass the folder of the run: '{re.escape(str(two_runs[0]))}'"):
        read_runs([two_runs[0] / "journal-eval.jsonl"])


def test_a_run_without_a_whole_record_is_left_out_and_named(two_runs, tmp_path):
    begun = write_run(tmp_path / "begun", [])
    runs, notes = read_runs([*two_runs, begun])
    assert [run.label for run in runs] == ["first", "second"]
    assert notes == ["begun is left out: it has no finished test document yet."]


def test_runs_of_which_none_has_a_record_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="has a finished test document"):
        read_runs([write_run(tmp_path / "begun", [])])


def test_a_line_cut_by_a_kill_is_no_document(two_runs):
    with (two_runs[0] / "journal-eval.jsonl").open("a") as file:
        file.write('{"index": 3, "dig')
    assert len(read_runs(two_runs)[0][0].records) == 3


def test_the_files_of_all_processes_are_one_run(tmp_path):
    folder = write_run(tmp_path / "run", [make_record(0, [1.0, 0.5])])
    write_run(folder, [make_record(1, [1.0, 0.5])], "eval.rank1")
    (run,) = read_runs([folder])[0]
    assert [record.index for record in run.records] == [0, 1]


def test_a_folder_given_twice_counts_once(two_runs):
    runs, notes = read_runs([two_runs[0], two_runs[0]])
    assert len(runs) == 1
    assert notes == ["A folder that was given twice counts once."]


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path):
    folders = [write_run(tmp_path / parent / "run", [make_record(0, [1.0])]) for parent in ("a", "b")]
    assert [run.label for run in read_runs(folders)[0]] == ["a/run", "b/run"]


def test_every_part_of_an_index_is_a_run(tmp_path):
    for name in ("1", "0.5", "1e-05"):
        write_run(tmp_path / "sizes", [make_record(0, [1.0])], f"eval-fraction-{name}")
    runs, _ = read_runs([tmp_path / "sizes"])
    assert [(run.label, run.fraction) for run in runs] == [
        ("sizes fraction 1e-05", 1e-05),
        ("sizes fraction 0.5", 0.5),
        ("sizes fraction 1", 1.0),
    ]


def test_a_score_that_is_no_number_is_an_error(tmp_path):
    folder = write_run(tmp_path / "run", [make_record(0, [1.0, math.nan])])
    with pytest.raises(ValueError, match=r"Document 0 \('document 0'\) .* not finite numbers"):
        read_runs([folder])


def test_a_journal_that_names_no_method_is_an_error(tmp_path):
    journal = Journal(tmp_path / "journal-eval.jsonl")
    journal.open({"model": "a-model"})
    journal.append(make_record(0, [1.0, 0.5]))
    journal.close()
    with pytest.raises(ValueError, match=r"name no method.*`super\(\)\.settings\(\)`"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_bytes", None),
        ("num_bytes", "100"),
        ("metadata", [1]),
        ("nll", ["1.0"]),
        ("distances", ["near"]),
        ("seconds", {"total": "long"}),
        ("error", 5),
    ],
)
def test_a_record_with_a_value_of_another_type_is_refused_by_its_field(tmp_path, field, value):
    record = make_record(0, [1.0, 0.5])
    setattr(record, field, value)
    folder = write_run(tmp_path / "run", [record])
    with pytest.raises(ValueError, match=rf"journal-eval\.jsonl' is no journal .*`{field}` is"):
        read_runs([folder])


def test_whole_numbers_are_scores_too(tmp_path):
    folder = write_run(tmp_path / "run", [make_record(0, [], nll=[3, 2])])
    assert read_runs([folder])[0][0].records[0].nll == [3, 2]


def test_broken_random_distances_are_an_error(two_runs):
    (two_runs[0] / "random-distances.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="random-distances.json"):
        read_runs(two_runs)


def test_only_settings_that_differ_set_runs_apart():
    runs = [make_run([make_record(0, [1.0])], order=order, seed=42) for order in ("nearest", "nearest", "random")]
    assert differing_settings(runs) == ({"order": "nearest"}, [{}, {}, {"order": "random"}])


def test_without_a_majority_every_run_shows_its_setting():
    runs = [make_run([make_record(0, [1.0])], learning_rate=rate) for rate in (1e-4, 1e-3)]
    assert differing_settings(runs) == ({}, [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}])


ALL_USES = {"num_indexed": 30, "learning_rate": 1e-4, "order": "nearest", "lora_rank": 16, "max_length": 256}
SCORED = {"status": "scored"}
NO_NEIGHBORS = {"neighbor_ids": [], "seconds": dict.fromkeys(("retrieve", "train", "score", "model", "total"), 0.0)}


@pytest.mark.parametrize(
    ("fields", "unused"),
    [
        ({}, set()),
        (SCORED, {"learning_rate", "order", "lora_rank", "trainable"}),
        (NO_NEIGHBORS, {"num_indexed", "num_neighbors", "order"}),
        (SCORED | NO_NEIGHBORS, {"num_indexed", "num_neighbors", "learning_rate", "order", "lora_rank", "trainable"}),
    ],
    ids=["trains on neighbors", "reads neighbors", "trains without neighbors", "does neither"],
)
def test_the_records_say_which_settings_a_run_uses(fields, unused):
    run = make_run([make_record(0, [1.0], **fields)], trainable="lora", **ALL_USES)
    assert run.settings.keys() - run.used_settings().keys() == unused


def test_a_run_that_found_no_neighbor_still_retrieves():
    run = make_run([make_record(0, [1.0], status="untrained", neighbor_ids=[])])
    assert run.used_settings()["num_neighbors"] == 2


def test_a_document_without_a_query_makes_no_run_one_that_retrieves():
    records = [make_record(0, [1.0], **NO_NEIGHBORS), make_record(1, [1.0], status="untrained", **NO_NEIGHBORS)]
    assert "num_neighbors" not in make_run(records, method="query").used_settings()


def test_a_run_that_was_last_started_with_fewer_documents_is_named(two_runs):
    (two_runs[0] / "evaluation.json").write_text(json.dumps({"num_documents": 2}))
    _, notes = read_runs(two_runs)
    assert notes == ["first was last started with 2 of its 3 documents. All of them count here."]


@pytest.mark.parametrize(("status", "method"), [("trained", "ttt, lora"), ("scored", "ttt")])
def test_a_method_is_named_with_what_it_trains(status, method):
    assert make_run([make_record(0, [1.0], status=status)], trainable="lora").method == method


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"train_on": "both"}, "ttt, on both"),
        ({"train_on": "neighbors", "mix": "none"}, "ttt"),
        ({"mix": "cache", "trainable": "lora"}, "ttt, lora, with cache"),
    ],
)
def test_a_method_is_named_with_what_it_trains_on_and_is_mixed_with(settings, method):
    assert make_run([make_record(0, [1.0])], **settings).method == method


def test_the_length_of_chunks_does_not_set_a_baseline_apart():
    records = [make_record(0, [1.0], **SCORED, **NO_NEIGHBORS)]
    baseline = make_run(records, method="prefix", prompt="context", max_length=1024)
    rolling = make_run(records, method="none", prompt="none", max_length=1024)
    assert "max_length" not in baseline.used_settings()
    assert "max_length" in rolling.used_settings()


def test_a_setting_that_a_run_does_not_use_does_not_set_it_apart():
    runs = [
        make_run([make_record(0, [1.0], **SCORED, **NO_NEIGHBORS)], method="none", learning_rate=1.0),
        make_run([make_record(0, [1.0])], learning_rate=1e-4),
    ]
    assert differing_settings(runs) == ({}, [{}, {}])


AUTHORS = {"num_neighbors": 50, "chunks_per_neighbor": None, "reset_optimizer": False, "disable_dropout": False}
AUTHORS |= {"max_distance": 16.0, "learning_rate": 2e-5, "max_length": 1024, "score_every_neighbor": True}
AUTHORS |= {"mix": "none", "selector": "nearest", "distinct": None, "train_on": "neighbors"}
AUTHORS |= {"cut": "tokens", "prompt": "none", "order": "nearest", "weight_decay": 0.01, "max_grad_norm": 1.0}
AUTHORS |= {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "gpt2", "query": "document"}, ("gpt2", True)),
        ({"model": "openai-community/gpt2", "query": "prefix"}, ("gpt2-split", True)),
        ({"model": "openai-community/gpt2", "query": "prefix", "cut": "text"}, ("gpt2-split", False)),
        ({"model": "gpt2", "query": "document", "cut": "text"}, ("gpt2", True)),
        ({"model": "gpt2-large", "query": "document"}, ("gpt2-large", True)),
        (
            {"model": "EleutherAI/gpt-neo-1.3B", "query": "document", "learning_rate": 5e-6, "max_length": 2048},
            ("gpt-neo-1.3B", True),
        ),
        ({"model": "EleutherAI/gpt-neo-1.3B", "query": "document"}, ("gpt-neo-1.3B", False)),
        ({"model": "gpt2", "query": "document", "learning_rate": 1.0}, ("gpt2", False)),
        ({"model": "gpt2", "query": "document", "num_neighbors": 40}, ("gpt2", False)),
        ({"model": "gpt2", "query": "document", "trainable": "lora"}, ("gpt2", False)),
        ({"model": "gpt2", "query": "document", "mix": "cache"}, ("gpt2", False)),
        ({"model": "gpt2", "query": "document", "selector": "sift"}, ("gpt2", False)),
        ({"model": "gpt2-large", "query": "prefix"}, ("gpt2-split", False)),
        ({"model": "someone/gpt2", "query": "document"}, ("gpt2", False)),
        ({"model": "smollm", "query": "prefix"}, ("gpt2-split", False)),
    ],
)
def test_published_figures_are_those_of_the_same_model_and_settings_or_marked(settings, expected):
    published = published_for(make_run([make_record(0, [1.0])], **{**AUTHORS, **settings}))
    assert (published.name, published.is_same) == expected


def test_settings_that_are_not_the_published_ones_are_named():
    run = make_run([make_record(0, [1.0])], **{**AUTHORS, "model": "gpt2", "query": "prefix", "prompt": "context"})
    published = published_for(run)
    assert published.is_same_model and not published.is_same
    assert published.differing == {"prompt": ("none", "context")}


# From the paper: bits per byte of all tasks before, and after 50 neighbors.
TOTALS = {"gpt2": (1.2079, 0.9922), "gpt2-split": (1.2402, 1.0242), "gpt2-large": (1.0724, 0.8537)}
TOTALS["gpt-neo-1.3B"] = (0.7385, 0.7103)


@pytest.mark.parametrize("name", TOTALS)
def test_the_published_tasks_weigh_up_to_the_published_total(name):
    figures = dict(published_figures()["runs"][name]["bits_per_byte"])
    totals = figures.pop("pile_all")
    assert (totals[0], totals[-1]) == TOTALS[name]
    title, weights = pile_weights(figures)
    assert title == "pile_all"
    for column, total in enumerate(totals):
        # the figures are rounded to four places
        assert sum(weights[task] * row[column] for task, row in figures.items()) == pytest.approx(total, abs=2e-4)


def test_the_published_figures_name_their_source_and_license():
    content = published_figures()
    assert "2305.18466" in content["source"]
    assert content["license"] == "MIT"


def test_published_figures_are_those_of_the_nearest_number_of_neighbors():
    run = make_run([make_record(0, [1.0])], model="gpt2", query="document", num_neighbors=30)
    published = published_for(run)
    assert published.neighbors == 20
    assert published.figures("github") == (1.9184, 0.7842)  # the paper's result files


def test_each_learning_rate_is_listed_with_its_score(tmp_path):
    folder = write_run(tmp_path / "run", [make_record(0, [2.0, 1.0])], learning_rate=1e-4)
    for rate, after in ((2e-05, 1.75), (1e-4, 1.5)):
        write_run(folder, [make_record(5, [2.0, after])], f"validation-{rate:g}", learning_rate=rate)
    trials = trials_of(read_runs([folder])[0][0])
    assert [(trial.name, trial.chosen) for trial in trials] == [
        ("learning rate 2e-05", False),
        ("learning rate 0.0001", True),
    ]
    assert [trial.bits_per_byte for trial in trials] == pytest.approx([1.75, 1.5])


def test_each_candidate_of_a_method_is_listed_in_the_order_of_its_scores(tmp_path):
    settings = {"method": "knn-lm", "knn_lambda": [0.1, 0.2], "knn_temperature": [1.0, 10.0]}
    chosen = {"method": "knn-lm", "knn_lambda": [0.1], "knn_temperature": [10.0]}
    folder = write_run(tmp_path / "run", [make_record(0, [2.0, 1.0])], **chosen)
    write_run(folder, [make_record(5, [2.0, 1.9, 1.8, 1.5, 1.7])], "validation", **settings)
    trials = trials_of(read_runs([folder])[0][0])
    assert [trial.name for trial in trials if trial.chosen] == ["knn_lambda 0.1, knn_temperature 10"]
    assert [trial.bits_per_byte for trial in trials] == pytest.approx([1.9, 1.8, 1.5, 1.7])
