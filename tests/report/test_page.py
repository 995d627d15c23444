"""The report of runs: what is read, what is compared, what is written, against figures by hand."""

import csv
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tttnn.cli.main import main
from tttnn.journal import Journal
from tttnn.records import DocumentRecord
from tttnn.report import write_report
from tttnn.report.intervals import Bootstrap, PairedScores
from tttnn.report.page import (
    Code,
    Heading,
    Paragraph,
    Picture,
    Points,
    Table,
    escape_markdown,
    html_page,
    markdown_page,
)
from tttnn.report.pictures.costs import pareto_front, rank_correlation, seconds_without_curve
from tttnn.report.published import published_for
from tttnn.report.results import Grouping, contaminated
from tttnn.report.runs import Run, differing_settings, read_runs
from tttnn.report.study import read_study
from tttnn.report.trials import trials_of


FEW = Bootstrap(num_samples=200)
SETTINGS = {"method": "ttt", "trainable": "full", "model": "a-model", "query": "prefix", "num_neighbors": 2}


def make_record(index, scores, num_bytes=100, **fields):
    """A record with these bits per byte; its text is told by its index."""
    return DocumentRecord(
        **{
            "index": index,
            "digest": f"{index:016x}",
            "id": f"document {index}",
            "metadata": {},
            "num_bytes": num_bytes,
            "num_words": 10,
            "nll": [score * num_bytes * math.log(2) for score in scores],
            "neighbor_ids": [7, 8],
            "seconds": {"retrieve": 0.5, "train": 2.0, "score": 1.0, "model": 2.0, "total": 4.0},
            **fields,
        }
    )


def write_run(folder, records, name="eval", **settings):
    journal = Journal(folder / f"journal-{name}.jsonl")
    journal.open(SETTINGS | settings)
    for record in records:
        journal.append(record)
    journal.close()
    return folder


def make_run(records, label="a run", folder=None, **settings):
    return Run(label, folder, "eval", SETTINGS | settings, records)


@pytest.fixture
def two_runs(tmp_path):
    """Three documents; the second run is better by 0.25 bits per byte on each."""
    before = [1.0, 2.0, 1.5]
    first = [make_record(index, [score, score - 0.25]) for index, score in enumerate(before)]
    second = [make_record(index, [score, score - 0.5]) for index, score in enumerate(before)]
    return [write_run(tmp_path / "first", first), write_run(tmp_path / "second", second, num_neighbors=4)]


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Pictures of few dots, which are drawn faster."""
    monkeypatch.setattr("tttnn.report.pictures.style.DPI", 40)


# --- reading ---


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


def test_broken_random_distances_are_an_error(two_runs):
    (two_runs[0] / "random-distances.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="random-distances.json"):
        read_runs(two_runs)


# --- settings ---


def test_only_settings_that_differ_set_runs_apart():
    runs = [make_run([make_record(0, [1.0])], order=order, seed=42) for order in ("nearest", "nearest", "random")]
    assert differing_settings(runs) == ({"order": "nearest"}, [{}, {}, {"order": "random"}])


def test_without_a_majority_every_run_shows_its_setting():
    runs = [make_run([make_record(0, [1.0])], learning_rate=rate) for rate in (1e-4, 1e-3)]
    assert differing_settings(runs) == ({}, [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}])


ALL_USES = {"num_indexed": 30, "learning_rate": 1e-4, "order": "nearest", "lora_rank": 16, "max_length": 256}
SCORED, NO_NEIGHBORS = {"status": "scored"}, {"neighbor_ids": []}


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


@pytest.mark.parametrize(("status", "method"), [("trained", "ttt, lora"), ("scored", "ttt")])
def test_a_method_is_named_with_what_it_trains(status, method):
    assert make_run([make_record(0, [1.0], status=status)], trainable="lora").method == method


def test_a_setting_that_a_run_does_not_use_does_not_set_it_apart():
    runs = [
        make_run([make_record(0, [1.0], **SCORED, **NO_NEIGHBORS)], method="none", learning_rate=1.0),
        make_run([make_record(0, [1.0])], learning_rate=1e-4),
    ]
    assert differing_settings(runs) == ({}, [{}, {}])


# --- results ---


def test_tasks_are_weighed_as_in_the_pile():
    pile = [("Github", [2.0, 1.0]), ("Github", [1.0, 0.5]), ("ArXiv", [3.0, 3.5]), ("ArXiv", [3.0, 3.5])]
    records = [make_record(i, scores, metadata={"pile_set_name": name}) for i, (name, scores) in enumerate(pile)]
    grouping = Grouping([make_run(records)], bootstrap=FEW)
    total = grouping.total(records)
    github, arxiv = 7.59 / (7.59 + 8.96), 8.96 / (7.59 + 8.96)
    assert total.group == "weighted_mean"
    assert total.before == pytest.approx(1.5 * github + 3.0 * arxiv)
    assert total.after == pytest.approx(0.75 * github + 3.5 * arxiv)
    assert total.worse == 2
    # draws of github change by -1, -0.75 or -0.5, those of arxiv all by 0.5
    assert (total.low, total.high) == pytest.approx((0.5 * arxiv - github, 0.5 * arxiv - 0.5 * github))
    assert [result.group for result in grouping.results(records)] == ["arxiv", "github"]  # the Pile's order


def test_groups_of_a_field_are_pooled_and_not_weighed():
    records = [
        make_record(0, [1.0, 0.5], metadata={"language": "en"}),
        make_record(1, [3.0, 3.0], 300, metadata={"language": "de"}),
        make_record(2, [1.0, 1.0], metadata={}),
    ]
    grouping = Grouping([make_run(records)], "language", FEW)
    assert [result.group for result in grouping.results(records)] == ["(none)", "de", "en"]
    # (100 + 900 + 100) and (50 + 900 + 100) bits over 500 bytes
    assert (grouping.total(records).before, grouping.total(records).after) == pytest.approx((2.2, 2.1))


def test_an_unknown_field_is_an_error_that_lists_the_fields():
    run = make_run([make_record(0, [1.0], metadata={"language": "en", "source": "web"})])
    with pytest.raises(ValueError, match="'topic'.*Choose from: language, source"):
        Grouping([run], "topic")


def test_a_task_without_a_byte_is_in_no_mean():
    records = [
        make_record(0, [0.0], 0, metadata={"pile_set_name": "ArXiv"}),
        make_record(1, [2.0, 1.0], metadata={"pile_set_name": "Github"}),
    ]
    total = Grouping([make_run(records)], bootstrap=FEW).total(records)
    assert (total.before, total.after, total.documents) == (pytest.approx(2.0), pytest.approx(1.0), 2)


def compare(ours, theirs, **settings):
    run, baseline = make_run(ours, "ours", **settings), make_run(theirs, "theirs")
    return Grouping([run, baseline], bootstrap=FEW).compare(run, baseline)


def test_runs_are_compared_on_the_documents_that_both_have():
    ours = [make_record(0, [2.0, 1.0]), make_record(1, [2.0, 1.5]), make_record(7, [9.0, 9.0])]
    theirs = [make_record(1, [2.0, 1.0]), make_record(0, [2.0, 1.25]), make_record(8, [5.0, 1.0])]
    result = compare(ours, theirs)
    assert (result.documents, result.only_run, result.only_baseline) == (2, 1, 1)
    assert (result.after, result.baseline_after) == pytest.approx((1.25, 1.125))
    # 1.0 - 1.25 for document 0, 1.5 - 1.0 for document 1
    assert (result.low, result.high) == pytest.approx((-0.25, 0.5))
    assert result.significant is False


def test_a_constant_difference_is_significant():
    ours, theirs = ([make_record(i, [2.0, 2.0 - i / 10 - gain]) for i in range(4)] for gain in (0.5, 0.0))
    result = compare(ours, theirs)
    assert (result.low, result.high) == pytest.approx((-0.5, -0.5))
    assert result.significant is True


def test_the_same_text_twice_is_matched_twice():
    ours, theirs = (
        [make_record(0, [2.0, after], digest="twice"), make_record(1, [2.0, 1.0], digest="twice")]
        for after in (1.0, 1.5)
    )
    assert compare(ours, theirs).documents == 2


def test_runs_without_a_document_in_common_are_not_compared():
    result = compare([make_record(0, [1.0])], [make_record(1, [1.0])])
    assert result.documents == 0
    assert math.isnan(result.difference)
    assert result.significant is None


def test_another_score_before_is_counted_with_the_settings_that_may_cause_it():
    theirs = [make_record(i, [2.0, 1.0]) for i in range(3)]
    ours = [make_record(i, [2.0 if i else 2.1, 1.0]) for i in range(3)]
    result = compare(ours, theirs, model="another", seed=7)
    assert (result.other_before, result.other_bytes) == (1, 0)
    assert result.causes == {"model": ("another", "a-model")}


def test_other_scored_bytes_are_counted():
    result = compare([make_record(0, [2.0], 90)], [make_record(0, [2.0], 100)], query="document")
    assert (result.other_bytes, result.causes) == (1, {"query": ("document", "prefix")})


def test_a_document_is_contaminated_if_any_run_found_a_near_copy():
    runs = [
        make_run([make_record(0, [1.0]), make_record(1, [1.0], near_copies=[5])]),
        make_run([make_record(1, [1.0])]),
    ]
    assert contaminated(runs) == {f"{1:016x}"}


def test_results_without_near_copies_leave_the_same_documents_out_of_all_runs(tmp_path):
    with_neighbors = [
        make_record(0, [2.0, 1.0], near_copies=[3]),
        make_record(1, [1.0, 0.9]),
        make_record(2, [1.0, 0.9]),
    ]
    folders = [
        write_run(tmp_path / "ttt", with_neighbors),
        write_run(
            tmp_path / "none", [make_record(i, [score]) for i, score in enumerate([2.0, 1.0, 1.0])], method="none"
        ),
    ]
    study = read_study(folders, bootstrap=FEW)
    assert [clean.documents for clean in study.clean] == [2, 2]
    assert study.clean[0].difference == pytest.approx(-0.1)
    assert study.clean_comparisons[0].difference == pytest.approx(0.1)


def test_an_unknown_baseline_is_an_error_that_lists_the_labels(two_runs):
    with pytest.raises(ValueError, match="'third'.*Choose from: first, second"):
        read_study(two_runs, baseline="third")


# --- intervals ---


def test_a_difference_of_runs_has_the_interval_of_a_paired_bootstrap_of_scipy():
    random = np.random.default_rng(3)
    size = random.integers(50, 5000, 40).astype(float)
    before = size * random.uniform(0.5, 2.0, 40)
    after = before * random.uniform(0.8, 1.05, 40)
    expected = stats.bootstrap(
        (before, after, size),
        lambda before, after, size, axis: (after.sum(axis) - before.sum(axis)) / size.sum(axis) / math.log(2),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    )
    found = Bootstrap().interval({"all": PairedScores(before, after, size, size)})
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=5 * 0.033 * expected.standard_error)


def test_draws_are_the_same_however_they_are_parted(monkeypatch):
    scores = {"all": PairedScores.of([make_record(i, [2.0, 1.0 + i / 7]) for i in range(6)])}
    whole = FEW.interval(scores)
    monkeypatch.setattr("tttnn.report.intervals.CHUNK", 13)
    assert FEW.interval(scores) == pytest.approx(whole)


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"seed": -1}, {"confidence": 1.0}])
def test_a_bootstrap_out_of_range_is_an_error(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        Bootstrap(**wrong)


def test_ties_share_their_mean_rank():
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: a covariance of 4.5 over the root of 4.5 * 5
    correlation = rank_correlation(np.array([1.0, 5.0, 5.0, 9.0]), np.array([0.1, 0.3, 0.2, 0.4]))
    assert correlation == pytest.approx(4.5 / math.sqrt(22.5))


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [1.0, 1.0, 1.0]])
def test_without_ranks_there_is_no_correlation(values):
    assert math.isnan(rank_correlation(np.array(values), np.arange(len(values))))


def test_the_front_holds_the_points_that_no_other_beats():
    assert pareto_front([(1.0, 2.0), (2.0, 1.0), (2.0, 1.5), (3.0, 1.0), (1.0, 3.0)]) == [0, 1]


# --- published figures ---


AUTHORS = {"num_neighbors": 50, "chunks_per_neighbor": None, "reset_optimizer": False, "disable_dropout": False}
AUTHORS |= {"max_distance": 16.0, "learning_rate": 2e-5, "max_length": 1024, "score_every_neighbor": True}
AUTHORS |= {"order": "nearest", "weight_decay": 0.01, "max_grad_norm": 1.0}
AUTHORS |= {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "gpt2", "query": "document"}, ("gpt2", True)),
        ({"model": "openai-community/gpt2", "query": "prefix"}, ("gpt2-split", True)),
        ({"model": "gpt2-large", "query": "document"}, ("gpt2-large", True)),
        (
            {"model": "EleutherAI/gpt-neo-1.3B", "query": "document", "learning_rate": 5e-6, "max_length": 2048},
            ("gpt-neo-1.3B", True),
        ),
        ({"model": "EleutherAI/gpt-neo-1.3B", "query": "document"}, ("gpt-neo-1.3B", False)),
        ({"model": "gpt2", "query": "document", "learning_rate": 1.0}, ("gpt2", False)),
        ({"model": "gpt2", "query": "document", "num_neighbors": 40}, ("gpt2", False)),
        ({"model": "gpt2", "query": "document", "trainable": "lora"}, ("gpt2", False)),
        ({"model": "gpt2-large", "query": "prefix"}, ("gpt2-split", False)),
        ({"model": "someone/gpt2", "query": "document"}, ("gpt2", False)),
        ({"model": "smollm", "query": "prefix"}, ("gpt2-split", False)),
    ],
)
def test_published_figures_are_those_of_the_same_model_and_settings_or_marked(settings, expected):
    published = published_for(make_run([make_record(0, [1.0])], **{**AUTHORS, **settings}))
    assert (published.name, published.is_same) == expected


def test_published_figures_are_those_of_the_nearest_number_of_neighbors():
    run = make_run([make_record(0, [1.0])], model="gpt2", query="document", num_neighbors=30)
    published = published_for(run)
    assert published.neighbors == 20
    assert published.figures("github") == (1.9184, 0.7842)  # the paper's result files


# --- choices ---


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


def test_each_pair_of_knn_lm_is_listed_in_the_order_of_its_scores(tmp_path):
    settings = {"method": "knn-lm", "knn_lambda": [0.1, 0.2], "knn_temperature": [1.0, 10.0]}
    chosen = {"method": "knn-lm", "knn_lambda": [0.1], "knn_temperature": [10.0]}
    folder = write_run(tmp_path / "run", [make_record(0, [2.0, 1.0])], **chosen)
    write_run(folder, [make_record(5, [2.0, 1.9, 1.8, 1.5, 1.7])], "validation", **settings)
    trials = trials_of(read_runs([folder])[0][0])
    assert [trial.name for trial in trials if trial.chosen] == ["lambda 0.1, temperature 10"]
    assert [trial.bits_per_byte for trial in trials] == pytest.approx([1.9, 1.8, 1.5, 1.7])


# --- the page ---

ODD = 'a|b <i>x</i> & "q" `c` *d* [e](f) $g$'


class Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_html_escapes_every_text(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"not a picture")
    blocks = [Heading(ODD, 1), Paragraph(ODD), Points([ODD]), Table([ODD, "n"], [[ODD, "1"]]), Picture(picture, ODD)]
    parsed = Texts()
    parsed.feed(html_page([*blocks, Code(ODD)]))
    assert "i" not in parsed.tags
    assert parsed.texts.count(ODD) == 8  # the title, the heading, and one for each other place


def test_markdown_shows_texts_as_they_are():
    text = "a < b & *c* [d](e) `f` snake_case _g_"
    assert escape_markdown(text) == r"a \< b \& \*c\* \[d\](e) \`f\` snake_case \_g\_"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# no heading", r"\# no heading"),
        ("1. no list", r"1\. no list"),
        ("- no list", r"\- no list"),
        ("-0.1", "-0.1"),
    ],
)
def test_a_text_begins_no_block_of_markdown(text, expected):
    assert escape_markdown(text) == expected


def test_code_with_a_fence_in_it_stays_code():
    assert markdown_page([Code("```\nx\n```")]) == "````text\n```\nx\n```\n````\n"


def test_a_report_has_all_its_files(two_runs, tmp_path):
    written = write_report(two_runs, tmp_path / "report", bootstrap=FEW)
    assert [path.name for path in written] == [
        *("report.md", "report.html", "results.csv", "results.json", "model-card.md")
    ]
    assert all(path.stat().st_size for path in written)


@pytest.mark.parametrize(
    ("run", "verdict"), [("better", "better"), ("worse", "worse"), ("as good", "not significant")]
)
def test_a_report_says_of_ten_documents_which_run_is_better(tmp_path, run, verdict):
    changes = {"better": [-0.25] * 10, "worse": [0.25] * 10, "as good": [-0.25, 0.25] * 5}[run]
    first = write_run(tmp_path / "first", [make_record(index, [2.0, 1.0]) for index in range(10)])
    records = [make_record(index, [2.0, 1.0 + change]) for index, change in enumerate(changes)]
    page = write_report([first, write_run(tmp_path / run, records)], tmp_path / "report", bootstrap=FEW)[0].read_text()
    cells = next(line for line in page.split("## Paired")[1].splitlines() if line.startswith(f"| {run} "))
    assert cells.split("|")[-2].strip() == verdict


def test_a_run_that_was_interrupted_is_noted_with_what_it_was_to_evaluate(tmp_path):
    folder = write_run(tmp_path / "run", [make_record(0, [2.0, 1.0])])
    evaluation = {"num_documents": 3, "arguments": {"model": "gpt2", "max_document_bytes": 4000}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_report([folder], tmp_path / "report", bootstrap=FEW)[0].read_text()
    assert "run is not finished: it has 1 of 3 documents." in page
    assert '"max_document_bytes": 4000' in page


def test_the_front_counts_two_scores_of_a_run_with_a_curve():
    curve = make_record(0, [2.0, 1.5, 1.25, 1.0], seconds=dict(retrieve=0, train=4, score=8, model=12, total=13))
    ends = make_record(0, [2.0, 1.0], seconds=dict(retrieve=0, train=4, score=4, model=8, total=9))
    assert seconds_without_curve(curve) == seconds_without_curve(ends) == 9


def test_a_report_gives_no_verdict_on_three_documents(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "report", bootstrap=FEW)
    (row,) = re.findall(r"\| second +\|.*of.*", (tmp_path / "report" / "report.md").read_text())
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["second", "3 of 3", "1.0000", "1.2500", "-0.2500 (-0.2500 to -0.2500)", "too few documents"]


def test_the_baseline_is_a_choice(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "report", baseline="second", bootstrap=FEW)
    (item,) = json.loads((tmp_path / "report" / "results.json").read_text())["comparisons"]
    assert (item["label"], item["difference"], item["significant"]) == ("first", pytest.approx(0.25), True)


def test_csv_has_a_row_for_each_run_and_group(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "report", bootstrap=FEW)
    with (tmp_path / "report" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    totals = [row for row in rows if row["is_total"] == "1"]
    assert [(row["run"], float(row["after"])) for row in totals] == [
        ("first", pytest.approx(1.25)),
        ("second", pytest.approx(1.0)),
    ]


def test_the_html_page_needs_nothing_else(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "report", bootstrap=FEW)
    parsed = Texts()
    parsed.feed((tmp_path / "report" / "report.html").read_text())
    assert "img" in parsed.tags
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert all(source.startswith(("data:image/png;base64,", "#part-")) for source in parsed.sources)


def test_the_same_journals_give_the_same_bytes(two_runs, tmp_path):
    for name in ("one", "two"):
        write_report(two_runs, tmp_path / name, bootstrap=FEW)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert {"report.html", "changes.png"} <= one.keys()


def test_the_order_in_which_documents_were_finished_does_not_show(tmp_path):
    records = [make_record(index, [2.0, 1.0 + index / 10]) for index in range(4)]
    write_run(tmp_path / "a" / "run", records)
    resumed = write_run(tmp_path / "b" / "run", records[2:3])
    write_run(resumed, [records[3], records[1]], "eval.rank1")
    write_run(resumed, records[:1])
    for name in ("a", "b"):
        write_report([tmp_path / name / "run"], tmp_path / name / "report", bootstrap=FEW)
    one, two = ((tmp_path / name / "report" / "report.html").read_bytes() for name in ("a", "b"))
    assert one == two


def test_an_untrained_document_is_listed_with_its_error(tmp_path):
    error = "ConnectionError: <refused> | by the host"
    records = [make_record(0, [2.0], status="untrained", error=error), make_record(1, [2.0, 1.0])]
    write_report([write_run(tmp_path / "run", records)], tmp_path / "report", bootstrap=FEW)
    parsed = Texts()
    parsed.feed((tmp_path / "report" / "report.html").read_text())
    assert error in parsed.texts
    assert "document 0" in parsed.texts


@pytest.mark.parametrize(
    "records",
    [
        [make_record(0, [2.0, 1.0])],
        [make_record(0, [0.0, 0.0], 0)],
        [make_record(0, [0.0], 0), make_record(1, [2.0])],
        [make_record(0, [2.0, 1.0], distances=[math.nan, 1.0]), make_record(1, [2.0, 1.0], distances=[math.nan])],
        [make_record(0, [2.0], seconds={"retrieve": 0, "train": 0, "score": 0, "model": 0, "total": 0})],
    ],
    ids=["one document", "no byte", "no byte in one", "distances of NaN", "no time"],
)
def test_odd_records_have_a_report_with_valid_json_and_no_nan(records, tmp_path):
    write_report([write_run(tmp_path / "run", records)], tmp_path / "report", bootstrap=FEW)
    json.loads((tmp_path / "report" / "results.json").read_text(), parse_constant=pytest.fail)
    page = (tmp_path / "report" / "report.md").read_text()
    assert not re.search(r"\bnan\b", page)


def test_a_label_with_signs_of_html_and_markdown_stays_a_text(tmp_path):
    label = "a|b <b>c & $d$ 'e'"
    write_report([write_run(tmp_path / label, [make_record(0, [2.0, 1.0])])], tmp_path / "report", bootstrap=FEW)
    parsed = Texts()
    parsed.feed((tmp_path / "report" / "report.html").read_text())
    assert label in parsed.texts
    assert "b" not in parsed.tags


def make_full_run(folder, count, **settings):
    """Documents of two tasks, with distances, scored after every neighbor."""
    records = [
        make_record(
            index,
            [2.0, 1.9 - index / 50, 1.8 - index / 50],
            metadata={"pile_set_name": ["Github", "ArXiv"][index % 2]},
            distances=[0.5 + index / 10, 0.9 + index / 10],
        )
        for index in range(count)
    ]
    return write_run(folder, records, score_every_neighbor=True, **settings)


def test_every_picture_is_drawn_where_there_is_data(tmp_path):
    folder = make_full_run(tmp_path / "run", 6)
    (folder / "random-distances.json").write_text('{"distances": [1.9, 2.0, 2.1]}')
    for fraction, size in ((0.1, 10), (1, 100)):
        records = [make_record(i, [2.0, 1.9], metadata={"pile_set_name": "Github"}) for i in range(2)]
        write_run(tmp_path / "sizes", records, f"eval-fraction-{fraction}", num_indexed=size)
    write_report([folder, tmp_path / "sizes"], tmp_path / "report", bootstrap=FEW)
    names = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert names == {
        *("changes", "curves", "distance-gain", "distances", "index-sizes", "seconds", "pareto"),
        *("tasks-1", "tasks-2", "tasks-3"),
    }
    for path in (tmp_path / "report").glob("*.png"):
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10, path.name  # not a blank sheet


def test_a_picture_without_data_is_left_out_with_the_reason(two_runs, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "curves.png").write_bytes(b"of an earlier report")
    write_report(two_runs, tmp_path / "report", bootstrap=FEW)
    assert not (tmp_path / "report" / "curves.png").exists()
    assert "no run was scored after every neighbor" in (tmp_path / "report" / "report.md").read_text()


def test_the_model_card_has_results_limits_and_citation(tmp_path):
    write_report([make_full_run(tmp_path / "run", 6)], tmp_path / "report", bootstrap=FEW)
    card = (tmp_path / "report" / "model-card.md").read_text()
    assert re.findall(r"^### (\w+)", card, re.M) == ["How", "Results", "Limits", "Citation"]
    assert "not comparable with a published pile_all" in " ".join(card.split()).replace("\\", "")
    assert "2305.18466" in card


@pytest.mark.parametrize(("module", "name"), [("matplotlib.figure", "matplotlib"), ("jinja2", "jinja2")])
def test_what_is_missing_is_said_before_any_work(module, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"need {name}. .*pip install tttnn\[report\]"):
        write_report([tmp_path / "no-such-run"], tmp_path / "report")


def test_the_command_writes_a_report_and_names_its_files(two_runs, tmp_path, capsys):
    output = tmp_path / "report"
    arguments = [*map(str, two_runs), "--output", str(output), "--baseline", "second", "--num_samples", "50"]
    assert main(["report", *arguments]) == 0
    assert str(output / "report.html") in capsys.readouterr().out.splitlines()


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "has no journal" in capsys.readouterr().err
