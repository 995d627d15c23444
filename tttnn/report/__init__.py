"""The report of runs: a page in Markdown and HTML with pictures, tables for programs, a section for a model card."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tttnn.report.card import model_card
from tttnn.report.intervals import Bootstrap, bootstrap_difference
from tttnn.report.page import Block, Heading, Paragraph, Picture, html_page, import_jinja2, markdown_page
from tttnn.report.pictures.costs import plot_distance_gain, plot_distances, plot_index_sizes, plot_pareto, plot_seconds
from tttnn.report.pictures.scores import plot_changes, plot_curve, plot_task_curves, plot_tasks
from tttnn.report.pictures.style import NothingToDraw, import_figure
from tttnn.report.sections import choices, comparison, group_table, near_copies, overview, reproduction, speed
from tttnn.report.study import Study, read_study, study_csv, study_json
from tttnn.report.tables import document_table, markdown_table, pooled_line, task_table


__all__ = [
    "Bootstrap",
    "bootstrap_difference",
    "document_table",
    "import_figure",
    "markdown_table",
    "plot_curve",
    "pooled_line",
    "task_table",
    "write_report",
]


def write_report(
    paths: Sequence[str | Path],
    output: str | Path = "report",
    baseline: str | None = None,
    group_by: str | None = None,
    bootstrap: Bootstrap | None = None,
) -> list[Path]:
    """
    Write a report of runs.

    Args:
        paths (`Sequence[str | Path]`):
            Folders that `tttnn evaluate` or `examples/pile_eval.py` wrote to.
        output (`str` or `Path`, *optional*, defaults to `"report"`):
            Folder to write; files of an earlier report in it are replaced.
        baseline (`str`, *optional*):
            Label of the run that the others are compared with. By default the first.
        group_by (`str`, *optional*):
            A field of the documents' metadata. By default tasks of the Pile, where every document has one.
        bootstrap (`Bootstrap`, *optional*):
            Draws the intervals.

    Returns:
        `list[Path]`: `report.md`, `report.html`, `results.csv`, `results.json` and `model-card.md`; pictures lie
        beside them. The same journals give the same bytes.

    Raises:
        `ImportError`: If matplotlib or jinja2 is missing.
        `ValueError`: If a folder has no journal, or there is no such label or field.
        `OSError`: If a folder is not there, or cannot be written.
    """
    import_figure()
    import_jinja2()
    study, folder = read_study(paths, baseline, group_by, bootstrap), Path(output)
    if folder.is_file():
        raise NotADirectoryError(f"The report's folder '{folder}' is a file. Pass another by `--output`.")
    folder.mkdir(parents=True, exist_ok=True)
    blocks = list(_page(study, folder))
    texts = {
        "report.md": markdown_page(blocks),
        "report.html": html_page(blocks),
        "results.csv": study_csv(study),
        "results.json": study_json(study),
        "model-card.md": markdown_page(model_card(study)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]


def _page(study: Study, folder: Path) -> Iterator[Block]:
    """Draw the pictures and put the parts of the page in their order."""
    labels, confidence = [run.label for run in study.runs], study.grouping.bootstrap.confidence

    def draw(name: str, caption: str, plot: Callable[[Path], str | None]) -> Block:
        path = folder / f"{name}.png"
        try:
            more = plot(path)
        except NothingToDraw as reason:
            path.unlink(missing_ok=True)  # one of an earlier report
            return Paragraph(f"No picture of {caption[0].lower()}{caption[1:]}: {reason}")
        return Picture(path, f"{caption}. {more}" if more else f"{caption}.")

    yield from overview(study)
    caption = f"Change in bits per byte of each run, with {study.interval_name} intervals over documents"
    yield draw("changes", caption, lambda path: plot_changes(labels, study.totals, path, confidence))
    yield from comparison(study)
    yield from _groups(study, draw)
    yield from near_copies(study)
    yield Heading("Neighbors")
    caption = "Bits per byte after every neighbor" + (" by task" if study.grouping.is_pile else "")
    yield draw("curves", caption, lambda path: plot_task_curves(study.runs, study.grouping, path))
    caption = "Gain of each document against the mean distance of its neighbors, with Spearman's rank correlation"
    yield draw("distance-gain", caption, lambda path: plot_distance_gain(study.runs, path))
    caption = "Distance to the k-th neighbor, median and quartiles over documents"
    yield draw("distances", caption, lambda path: plot_distances(study.runs, path))
    caption = "Bits per byte after against the size of the index, with intervals of the change"
    yield draw("index-sizes", caption, lambda path: plot_index_sizes(study.runs, study.totals, path))
    yield from speed(study)
    yield draw("seconds", "Seconds per document by phase", lambda path: plot_seconds(labels, study.totals, path))
    caption = "Bits per byte after against seconds per document"
    yield draw("pareto", caption, lambda path: plot_pareto(study.runs, study.grouping, path))
    yield from choices(study)
    yield from reproduction(study)


def _groups(study: Study, draw: Callable[[str, str, Callable[[Path], str | None]], Block]) -> Iterator[Block]:
    kind = study.grouping.kind
    if kind is None:
        yield Heading("Groups")
        yield Paragraph(
            "The documents are one group: they have no task of the Pile, and no --group_by names a field of theirs."
        )
        return
    yield Heading("Tasks" if study.grouping.is_pile else f"By {kind}")
    for place, (run, total, results) in enumerate(zip(study.runs, study.totals, study.groups, strict=True), 1):
        yield Heading(run.label, 3)
        yield from group_table(study, run, total, results)
        caption = f"{run.label}: bits per byte before and after, with intervals of the difference"
        confidence = study.grouping.bootstrap.confidence
        plot = partial(plot_tasks, [*results, total], title=run.label, confidence=confidence)
        yield draw(f"tasks-{place}", caption, plot)
