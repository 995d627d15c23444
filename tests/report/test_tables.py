"""Tables, intervals and the picture, against figures by hand and SciPy's bootstrap."""

import math
import re
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from tttnn.records import DocumentRecord
from tttnn.report import Bootstrap, PairedScores, document_table, markdown_table, plot_curve, pooled_line, task_table


def make_record(bits_per_byte, num_bytes=100, **fields):
    """A record that has these bits per byte before and after (each neighbor)."""
    nll = [value * num_bytes * math.log(2) for value in bits_per_byte]
    fields = {
        "id": "a document",
        "seconds": {"retrieve": 0.25, "train": 1.25, "score": 0.25, "model": 1.5, "total": 2.0},
        **fields,
    }
    return DocumentRecord(0, "0" * 16, metadata={}, num_bytes=num_bytes, num_words=10, nll=nll, **fields)


def make_records(count, seed=0, slope=0.0):
    """Documents of very different lengths and levels, which training changes by little; long ones by `slope` more."""
    random = np.random.default_rng(seed)
    records = []
    for num_bytes in random.integers(50, 5000, size=count).tolist():
        before = random.uniform(0.5, 3.0)
        after = before - 0.1 + 0.05 * random.standard_normal() - slope * num_bytes / 5000
        records.append(make_record([before, after], num_bytes))
    return records


def interval_of(groups, weights=None, **bootstrap):
    """The interval of records by group."""
    scores = {name: PairedScores.of(records) for name, records in groups.items()}
    return Bootstrap(**bootstrap).interval(scores, weights)


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_is_that_of_a_paired_percentile_bootstrap_of_scipy(confidence):
    records = make_records(30, slope=0.3)
    change = [(record.nll[-1] - record.nll[0]) / math.log(2) for record in records]
    num_bytes = [record.num_bytes for record in records]
    expected = stats.bootstrap(
        (change, num_bytes),
        lambda change, num_bytes, axis: change.sum(axis=axis) / num_bytes.sum(axis=axis),
        paired=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=20_000,
        rng=1,
    )
    # a 2.5 % quantile of 10,000 draws has a Monte-Carlo error of 0.027 standard deviations, that of 20,000 0.019
    error = 5 * 0.033 * expected.standard_error
    assert interval_of({"all": records}, confidence=confidence) == pytest.approx(
        tuple(expected.confidence_interval), abs=error
    )
    # a mean of the documents' own differences would lie elsewhere, so the test can tell
    own = np.mean(np.divide(change, num_bytes))
    assert abs(own - sum(change) / sum(num_bytes)) > 2 * error


def test_the_interval_of_a_mean_and_of_another_statistic_is_that_of_scipy():
    values = np.random.default_rng(3).gamma(2.0, size=40)
    for statistic, ours in (
        (np.mean, Bootstrap().mean_interval(values)),
        (np.median, Bootstrap().statistic_interval(lambda places: float(np.median(values[places])), 40)),
    ):
        expected = stats.bootstrap((values,), statistic, method="percentile", n_resamples=20_000, rng=1)
        error = 5 * 0.033 * expected.standard_error
        assert ours == pytest.approx(tuple(expected.confidence_interval), abs=error)
    assert np.isnan(Bootstrap().mean_interval(values[:1])).all()
    assert np.isnan(Bootstrap().statistic_interval(float, 1)).all()


def test_groups_are_resampled_each_for_itself_and_weighed():
    groups = {"many": make_records(25, seed=1), "few": make_records(4, seed=2, slope=0.5)}
    weights = {"many": 0.3, "few": 0.7}
    random, draws = np.random.default_rng(5), []
    for _ in range(4000):
        draw = 0.0
        for name, records in groups.items():
            drawn = [records[row] for row in random.integers(0, len(records), size=len(records))]
            nats = sum(record.nll[-1] for record in drawn) - sum(record.nll[0] for record in drawn)
            draw += weights[name] * nats / sum(record.num_bytes for record in drawn) / math.log(2)
        draws.append(draw)
    error = 5 * 0.05 * np.std(draws)
    assert interval_of(groups, weights) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=error)


def test_equal_documents_have_an_interval_without_width():
    groups = {"github": [make_record([1.0, 0.9])] * 5, "arxiv": [make_record([2.0, 2.3], 700)] * 3}
    # 0.25 * -0.1 + 0.75 * 0.3
    assert interval_of(groups, {"github": 0.25, "arxiv": 0.75}) == pytest.approx((0.2, 0.2))


def test_sums_are_pooled_not_means():
    """Of two documents, draws are (a, a), (a, b) and (b, b) with 1/4, 1/2 and 1/4: the middle 40 % are (a, b)."""
    records = [make_record([1.0, 1.0], 100), make_record([2.0, 1.0], 300)]
    # (0 + 300 bits) / 400 bytes, where a mean of the documents' differences is 0.5
    assert interval_of({"all": records}, confidence=0.4) == pytest.approx((-0.75, -0.75))
    assert interval_of({"all": records}) == pytest.approx((-1.0, 0.0))


def test_an_untrained_document_counts_with_a_difference_of_zero():
    records = [make_record([2.0], status="untrained", error="no neighbor"), make_record([2.0, 1.0])]
    assert interval_of({"all": records}, confidence=0.4) == pytest.approx((-0.5, -0.5))


def test_a_draw_without_a_byte_is_left_out():
    records = [make_record([0.0], 0), make_record([2.0, 1.0])]
    assert interval_of({"all": records}) == pytest.approx((-1.0, -1.0))


@pytest.mark.parametrize("groups", [{"one": 1}, {"one": 1, "other": 1}, {"many": 5, "none": 0}, {"none": 0}])
def test_without_a_group_of_two_documents_or_with_an_empty_one_there_is_no_interval(groups):
    records = {name: make_records(count) for name, count in groups.items()}
    low, high = interval_of(records, dict.fromkeys(groups, 1 / len(groups)))
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_group_of_one_document_is_held_fixed():
    groups = {"many": [make_record([2.0, 1.0]), make_record([2.0, 1.5])], "one": [make_record([1.0, 1.25])]}
    # draws of the first group lie between -1 and -0.5; 0.75 of that and 0.25 of +0.25
    assert interval_of(groups, {"many": 0.75, "one": 0.25}) == pytest.approx((-0.6875, -0.3125))


def test_an_interval_is_the_same_each_time_and_depends_on_the_seed():
    groups = {"all": make_records(10)}
    assert interval_of(groups) == interval_of(groups)
    assert interval_of(groups) != interval_of(groups, seed=1)


def test_more_confidence_asks_for_a_wider_interval():
    groups = {"all": make_records(10)}
    (wide_low, wide_high), (low, high) = (interval_of(groups, confidence=share) for share in (0.99, 0.5))
    assert wide_low < low < high < wide_high


TRAINED = make_record([2.0, 1.5, 1.0], 100, id="a.py", near_copies=[7])
UNTRAINED = make_record([3.0], 50, id="b.py", status="untrained", error="no neighbor")


def test_a_document_table_says_what_every_document_and_all_of_them_gained():
    assert document_table([TRAINED, UNTRAINED]) == "\n".join(
        [
            "| document         | bytes | bits per byte before |  after | ratio | seconds |",
            "|------------------|------:|---------------------:|-------:|------:|--------:|",
            "| a.py             |   100 |               2.0000 | 1.0000 | 0.500 |     2.0 |",
            "| b.py (untrained) |    50 |               3.0000 | 3.0000 | 1.000 |     2.0 |",
            "",
            # 350 and 250 bits over 150 bytes; draws of two documents lie between (a, a) and (b, b)
            "Pooled over 2 documents (150 bytes), without a prompt: 2.3333 -> 1.6667 bits per byte, ratio 0.714, "
            "difference -0.6667 (95 % paired bootstrap over documents: -1.0000 to +0.0000). Worse than before on 0 of "
            "2 documents. 1 had a near-copy of the document among their neighbors. Scored with the original model, "
            "because they could not be trained on: b.py.",
        ]
    )


def test_a_document_without_a_byte_has_no_ratio():
    row = document_table([make_record([0.0, 0.0], 0, id="empty"), TRAINED]).splitlines()[2]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["empty", "0", "–", "–", "–", "2.0"]


def test_documents_that_got_worse_are_counted():
    records = [make_record([1.0, 1.1]), make_record([1.0, 0.9]), make_record([1.0, 1.0]), make_record([1.0, 1.2])]
    assert "Worse than before on 2 of 4 documents." in pooled_line(records)


def test_with_the_prompt_in_context_documents_are_worse_than_the_prompt_alone():
    records = [make_record([1.0, 1.1]), make_record([1.0, 0.9])]
    for show in (pooled_line, document_table):
        assert "Worse than the prompt alone on 1 of 2 documents." in show(records, "context")
    header = task_table({"github": records}, "weighted_mean", {"github": 1.0}, "context").splitlines()[0]
    assert "| worse than the prompt alone |" in header


def test_of_one_document_no_interval_is_claimed():
    line = pooled_line([TRAINED])
    assert "2.0000 -> 1.0000 bits per byte" in line
    assert "nan" not in line


def test_a_task_table_weighs_the_tasks_and_pools_them_without_weights():
    groups = {
        "github": [make_record([2.0, 1.0], 100), make_record([1.0, 1.0], 300)],
        "arxiv": [make_record([1.0, 1.2]), make_record([1.0, 1.2])],
    }
    lines = task_table(groups, "weighted_mean", {"github": 0.75, "arxiv": 0.25}).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == [
        *(
            "task",
            "documents",
            "worse than before",
            "bits per byte before",
            "after",
            "ratio",
            "difference, 95 % interval",
            "seconds",
        )
    ]
    # github: 500 and 400 bits over 400 bytes. The total: 0.75 * 1.25 + 0.25 * 1.0 and 0.75 * 1.0 + 0.25 * 1.2; the
    # draws of github are -1, -0.25 and 0, those of arxiv all 0.2, so the total's reach from -0.7 to +0.05
    assert rows[2:5] == [
        ["github", "2", "0", "1.2500", "1.0000", "0.800", "-0.2500 (-1.0000 to +0.0000)", "4"],
        ["arxiv", "2", "2", "1.0000", "1.2000", "1.200", "+0.2000 (+0.2000 to +0.2000)", "4"],
        ["weighted_mean", "4", "2", "1.1875", "1.0500", "0.884", "-0.1375 (-0.7000 to +0.0500)", "8"],
    ]
    # 700 and 640 bits over 600 bytes
    assert rows[5][:6] == ["pooled, unweighted", "4", "2", "1.1667", "1.0667", "0.914"]
    assert rows[5][6].startswith("-0.1000 (")


def test_a_markdown_table_is_aligned():
    assert markdown_table(["name", "n"], [["a", "12345"], ["longer than it", "1"]]) == "\n".join(
        [
            "| name           |     n |",
            "|----------------|------:|",
            "| a              | 12345 |",
            "| longer than it |     1 |",
        ]
    )


def test_a_pipe_in_a_cell_does_not_part_it():
    lines = markdown_table(["id", "n"], [["a|b", "1"], ["|", "2"]]).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[2:] == [["a\\|b", "1"], ["\\|", "2"]]
    assert len({len(line) for line in lines}) == 1


def test_a_line_break_in_a_cell_does_not_break_the_table():
    assert len(markdown_table(["id", "n"], [["a\nb", "1"], ["c\r\nd", "2"]]).splitlines()) == 4


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved, savefig = [], Figure.savefig

    def keep(figure, *arguments, **options):
        saved.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_curve_is_a_readable_picture(count, tmp_path):
    records = [make_record([1.5, 1.4, 1.3 + 0.01 * number]) for number in range(count)]
    path = plot_curve(records, tmp_path / "curve.png", title="a title")
    assert path == tmp_path / "curve.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (960, 600)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # not a blank sheet


def test_a_curve_pools_sums_and_carries_shorter_rows_forward(tmp_path, figures):
    records = [make_record([2.0, 1.0, 0.5], 300), make_record([4.0, 3.0], 100), make_record([2.0], 100)]
    plot_curve(records, tmp_path / "curve.png")
    (axes,) = figures[0].axes
    curve, before = axes.lines
    assert curve.get_xdata().tolist() == [0, 1, 2]
    # (600 + 400 + 200, 300 + 300 + 200, 150 + 300 + 200) bits over 500 bytes
    assert curve.get_ydata().tolist() == pytest.approx([2.4, 1.6, 1.3])
    assert list(before.get_ydata()) == pytest.approx([2.4, 2.4])


def test_the_band_of_a_curve_is_the_interval_of_the_change(tmp_path, figures):
    """Draws of two documents lie between the one's change and the other's, and both ends have a chance of 1/4."""
    plot_curve([make_record([2.0, 1.0, 1.5]), make_record([4.0, 3.5, 4.5])], tmp_path / "curve.png")
    (band,) = figures[0].axes[0].collections
    vertices = band.get_paths()[0].vertices
    ends = [(vertices[vertices[:, 0] == x, 1].min(), vertices[vertices[:, 0] == x, 1].max()) for x in (0, 1, 2)]
    # before training 3.0; the changes are -1 and -0.5 after one neighbor, -0.5 and +0.5 after two
    assert ends == [pytest.approx(pair) for pair in [(3.0, 3.0), (2.0, 2.5), (2.5, 3.5)]]


def test_the_band_of_a_curve_ends_where_the_interval_of_the_table_ends(tmp_path, figures):
    records = make_records(12, slope=0.2)
    plot_curve(records, tmp_path / "curve.png")
    before = figures[0].axes[0].lines[0].get_ydata()[0]
    vertices = figures[0].axes[0].collections[0].get_paths()[0].vertices
    last = vertices[vertices[:, 0] == 1, 1]
    assert (last.min() - before, last.max() - before) == pytest.approx(interval_of({"all": records}))


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_the_legend_of_a_curve_leaves_the_curve_free(factor, tmp_path, figures):
    records = [make_record([level * factor**step for step in range(21)]) for level in (1.0, 1.1, 1.3)]
    plot_curve(records, tmp_path / "curve.png")
    (axes,) = figures[0].axes
    box = axes.get_legend().get_window_extent()
    points = axes.transData.transform(np.column_stack(axes.lines[0].get_data()))
    assert not any(box.contains(*point) for point in points)


def test_a_curve_says_what_it_shows(tmp_path, figures):
    plot_curve([make_record([2.0, 1.0])] * 3, tmp_path / "curve.png", title="a tiny model")
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        "neighbors trained on",
        "bits per byte",
        "a tiny model",
    )
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["95 % interval of the change", "3 documents, pooled", "before training"]


def test_a_curve_counts_whole_neighbors(tmp_path, figures):
    plot_curve([make_record([2.0, 1.0])] * 2, tmp_path / "curve.png")
    axes = figures[0].axes[0]
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_a_curve_of_one_document_claims_no_interval(tmp_path, figures):
    plot_curve([make_record([2.0, 1.0])], tmp_path / "curve.png")
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels == ["1 document", "before training"]


def test_the_suffix_of_a_picture_says_its_format(tmp_path):
    path = plot_curve([make_record([2.0, 1.0])] * 2, tmp_path / "curve.svg")
    assert "<svg" in path.read_text()


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install tttnn\[report\]"):
        plot_curve([make_record([2.0, 1.0])] * 2, tmp_path / "curve.png")


def test_without_matplotlib_a_table_is_still_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "a.py" in document_table([TRAINED, UNTRAINED])
