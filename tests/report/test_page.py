"""The page and the other files of a report."""

import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from made_runs import FEW, make_record, write_run, write_two_runs
from PIL import Image

from tttnn.cli.main import main
from tttnn.report import write_report
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
from tttnn.report.pictures.costs import seconds_without_curve
from tttnn.report.sections import settings_text


@pytest.fixture
def two_runs(tmp_path):
    return write_two_runs(tmp_path)


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Pictures of few dots, which are drawn faster."""
    monkeypatch.setattr("tttnn.report.pictures.style.DPI", 40)


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


def test_digests_of_settings_are_cut_and_names_are_not():
    settings = {"weights": "0123456789abcdef", "index": "my corpus, 2026-11-01", "seed": 42}
    assert settings_text(settings) == "weights 01234567, index my corpus, 2026-11-01, seed 42"


def test_code_with_a_fence_in_it_stays_code():
    assert markdown_page([Code("```\nx\n```")]) == "````text\n```\nx\n```\n````\n"


def test_a_report_has_all_its_files(two_runs, tmp_path):
    written = write_report(two_runs, tmp_path / "report", bootstrap=FEW)
    assert [path.name for path in written] == [
        *("report.md", "report.html", "results.csv", "results.json", "model-card.md")
    ]
    assert all(path.stat().st_size for path in written)


def test_a_page_shows_what_a_mixture_changes(tmp_path):
    """Without it the first document gets worse by 0.5 bits per byte, and the second better by as much."""
    bit = 100 * math.log(2)
    records = [
        make_record(index, [1.0, 0.75], unmixed_nll=[bit, after * bit]) for index, after in enumerate((1.5, 0.5))
    ]
    plain = write_run(tmp_path / "plain", [make_record(index, [1.0, 0.9]) for index in range(2)])
    mixed = write_run(tmp_path / "mixed", records, mix="both")
    page = write_report([plain, mixed], tmp_path / "report", bootstrap=FEW)[0].read_text()
    section = page.split("## Mixtures")[1].split("## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    assert [row[:5] for row in lines[2:]] == [
        ["mixed", "none", "1.0000", "1.0000", "1.000"],
        ["mixed", "both", "1.0000", "0.7500", "0.750"],
    ]
    assert [row[-1] for row in lines[2:]] == ["1 (50 %)", "0 (0 %)"]


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
    assert cells == [
        "second",
        "3 of 3",
        "1.0000",
        "1.2500",
        "-0.2500 (-0.2500 to -0.2500)",
        "0 (0 %)",
        "too few documents",
    ]


def test_documents_worse_than_the_baseline_are_counted(tmp_path):
    first = write_run(tmp_path / "first", [make_record(index, [2.0, 1.0]) for index in range(4)])
    records = [make_record(index, [2.0, after]) for index, after in enumerate([0.5, 1.5, 1.0, 3.0])]
    write_report([first, write_run(tmp_path / "second", records)], tmp_path / "report", bootstrap=FEW)
    page = (tmp_path / "report" / "report.md").read_text().split("## Paired")[1]
    header, row = (
        next(line for line in page.splitlines() if name in line) for name in ("documents worse", "| second")
    )
    cells = dict(zip(map(str.strip, header.split("|")), map(str.strip, row.split("|")), strict=True))
    assert cells["documents worse than first"] == "2 (50 %)"
    (item,) = json.loads((tmp_path / "report" / "results.json").read_text())["comparisons"]
    assert item["worse"] == 2


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        (["context"], "worse than the prompt alone"),
        (["none"], "worse than before"),
        (["context", "none"], "worse than before"),
    ],
)
def test_the_table_of_runs_shows_the_prompt_and_what_worse_is_compared_with(tmp_path, prompts, name):
    records = [make_record(0, [1.0, 2.0]), make_record(1, [2.0, 1.0])]
    folders = [write_run(tmp_path / f"run-{prompt}", records, prompt=prompt) for prompt in prompts]
    page = write_report(folders, tmp_path / "report", bootstrap=FEW)[0].read_text().split("## Runs")[1]
    header, _, *rows = [line.split("|") for line in page.splitlines() if line.startswith("|")][: 2 + len(prompts)]
    names = [cell.strip() for cell in header]
    assert [row[names.index("prompt")].strip() for row in rows] == prompts
    assert [row[names.index(name)].strip() for row in rows] == ["1 (50 %)"] * len(prompts)


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


def test_a_page_of_tasks_has_an_unweighted_row_and_a_note_about_single_documents(tmp_path):
    names = ["Github", "Github", "ArXiv"]
    records = [make_record(i, [2.0, 1.0 + i], metadata={"pile_set_name": name}) for i, name in enumerate(names)]
    write_report([write_run(tmp_path / "run", records)], tmp_path / "report", bootstrap=FEW)
    page = (tmp_path / "report" / "report.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.split("### run")[1].splitlines() if line.startswith("|")]
    assert rows[2:6] == ["arxiv", "github", "weighted_mean", "pooled, unweighted"]
    assert "Tasks with one document have no interval: arxiv." in page
    (run,) = json.loads((tmp_path / "report" / "results.json").read_text())["runs"]
    assert run["pooled"]["after"] == pytest.approx(2.0)
    assert run["total"]["low"] is not None
    with (tmp_path / "report" / "results.csv").open() as file:
        rows = [(row["group"], row["is_total"], row["documents"]) for row in csv.DictReader(file)]
    assert rows[2:] == [("weighted_mean", "1", "3"), ("pooled, unweighted", "0", "3")]


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


LATE = {"torch", "transformers", "datasets", "sentence_transformers", "faiss"}


def modules_after(program):
    command = [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_a_report_is_written_without_torch_and_its_relatives(two_runs, tmp_path):
    program = (
        f"from tttnn.report import write_report; write_report({list(map(str, two_runs))}, {str(tmp_path / 'r')!r})"
    )
    assert modules_after(program) & LATE == set()


def test_libraries_of_the_report_are_loaded_when_used():
    late = {"scipy", "matplotlib", "jinja2", *LATE}
    assert modules_after("from tttnn.report import *") & late == set()


def test_the_model_card_names_all_learning_rates_of_an_optimizer(tmp_path):
    folder = write_run(tmp_path / "run", [make_record(0, [2.0, 1.0])], learning_rate=[1e-5, 1e-3])
    write_report([folder], tmp_path / "report", bootstrap=FEW)
    assert "learning rate 1e-05 and 0.001" in (tmp_path / "report" / "model-card.md").read_text()


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


def test_tokens_of_the_best_and_the_worst_document_are_shown(tmp_path):
    """8 and -2 bits by hand; a hostile token stays a text."""
    better = {"tokens": ["<b>", " x"], "token_bits": [[9.0, 1.0], [1.0, 1.0]]}
    worse = {"tokens": ["y"], "token_bits": [[1.0], [3.0]]}
    records = [make_record(0, [10.0, 4.5], id="good", **better), make_record(1, [1.0, 2.4], id="bad", **worse)]
    write_run(tmp_path / "run", records)
    write_report([tmp_path / "run"], tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'title="+8.00 bits">&lt;b&gt;</span>' in page
    assert 'title="-2.00 bits">y</span>' in page
    text = (tmp_path / "report" / "report.md").read_text()
    assert "run: good gained most, +8.0 bits" in text
    assert "run: bad gained least, -2.0 bits" in text


def test_without_tokens_there_is_no_part_for_them(two_runs, tmp_path):
    write_report(two_runs, tmp_path / "report")
    assert "## Tokens" not in (tmp_path / "report" / "report.md").read_text()


def test_documents_with_a_part_of_the_index_are_counted(tmp_path):
    records = [make_record(0, [10.0, 9.0], missing_shards=[3]), make_record(1, [10.0, 9.0])]
    write_run(tmp_path / "run", records)
    write_report([tmp_path / "run"], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| partial |" in text.replace("  ", " ").replace("  ", " ")
    card = (tmp_path / "report" / "model-card.md").read_text()
    assert "run: 1 of 2 documents got neighbors from a part of the index only" in card
