"""Results, comparisons and intervals, against figures by hand and SciPy's bootstrap."""

import math

import numpy as np
import pytest
from made_runs import FEW, make_record, make_run, write_run, write_two_runs
from scipy import stats

from tttnn.intervals import Bootstrap, PairedScores
from tttnn.report.pictures.costs import pareto_front, rank_correlation
from tttnn.report.results import Grouping, contaminated
from tttnn.report.study import read_study


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


def test_a_weighted_total_has_an_unweighted_one_beside_it():
    records = [
        make_record(0, [2.0, 1.0], 300, metadata={"pile_set_name": "Github"}),
        make_record(1, [4.0, 3.0], 100, metadata={"pile_set_name": "ArXiv"}),
    ]
    pooled = Grouping([make_run(records)], bootstrap=FEW).pooled(records)
    # 600 + 400 and 300 + 300 bits over 400 bytes; draws of two documents change by -1 in all cases
    assert (pooled.before, pooled.after, pooled.low, pooled.high) == pytest.approx((2.5, 1.5, -1.0, -1.0))


def test_a_task_of_one_document_leaves_the_total_its_interval():
    pile = [("Github", [2.0, 1.0]), ("Github", [2.0, 1.5]), ("ArXiv", [3.0, 3.5])]
    records = [make_record(i, scores, metadata={"pile_set_name": name}) for i, (name, scores) in enumerate(pile)]
    total = Grouping([make_run(records)], bootstrap=FEW).total(records)
    github, arxiv = 7.59 / (7.59 + 8.96), 8.96 / (7.59 + 8.96)
    # draws of github change by -1, -0.75 or -0.5; the document of arxiv changes by 0.5 in each
    assert (total.low, total.high) == pytest.approx((0.5 * arxiv - github, 0.5 * arxiv - 0.5 * github))


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


def test_a_set_name_that_is_no_text_is_no_task_of_the_pile():
    run = make_run([make_record(0, [2.0, 1.0], metadata={"pile_set_name": ["Github"]})])
    assert Grouping([run], None, FEW).total(run.records).group == "all"


def test_a_run_of_untrained_documents_changes_nothing_and_counts_them():
    untrained = {"status": "untrained", "error": "no neighbor was retrieved", "neighbor_ids": []}
    run = make_run([make_record(index, [2.0, 2.0], **untrained) for index in range(3)])
    total = Grouping([run], None, FEW).total(run.records)
    assert (total.untrained, total.worse, total.difference, total.low, total.high) == (3, 0, 0, 0, 0)


def test_what_a_reader_must_know_of_small_runs_is_noted(tmp_path):
    small = write_run(tmp_path / "small", [make_record(0, [0.0, 0.0], num_bytes=0)])
    large = write_run(tmp_path / "large", [make_record(index, [2.0, 1.0]) for index in range(2)])
    documents, scores = read_study([small, large], bootstrap=FEW).notes
    assert documents.startswith("small has 1 document, and another run has 2: compare them in the paired comparison")
    assert scores == "small: no document has a byte to score, so there is no score."


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


def test_an_unknown_baseline_is_an_error_that_lists_the_labels(tmp_path):
    with pytest.raises(ValueError, match="'third'.*Choose from: first, second"):
        read_study(write_two_runs(tmp_path), baseline="third")


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
    monkeypatch.setattr("tttnn.intervals.CHUNK", 13)
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
