"""The report's page, part by part, and its files."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tttnn.intervals import Bootstrap
from tttnn.report.card import model_card
from tttnn.report.export import study_csv, study_json
from tttnn.report.page import Block, Heading, Paragraph, Picture, html_page, import_jinja2, markdown_page
from tttnn.report.pictures.costs import plot_distance_gain, plot_distances, plot_index_sizes, plot_pareto, plot_seconds
from tttnn.report.pictures.scores import plot_changes, plot_task_curves, plot_tasks
from tttnn.report.pictures.style import NothingToDraw, import_figure
from tttnn.report.sections import (
    choices,
    comparison,
    group_table,
    mixtures,
    near_copies,
    overview,
    reproduction,
    speed,
    token_view,
)
from tttnn.report.study import Study, read_study


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
            A field of the documents' metadata. By default the tasks of the Pile, if every document has one.
        bootstrap (`Bootstrap`, *optional*):
            How the intervals are drawn.

    Returns:
        `list[Path]`: `report.md`, `report.html`, `results.csv`, `results.json` and `model-card.md`; pictures are
        written beside them. The same journals give the same bytes.

    Raises:
        `ImportError`: If matplotlib or jinja2 is missing.
        `ValueError`: If a folder has no journal, or there is no such label or field.
        `OSError`: If a folder does not exist or cannot be written.
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
            remark = plot(path)
        except NothingToDraw as reason:
            path.unlink(missing_ok=True)  # one of an earlier report
            return Paragraph(f"No picture of {caption[0].lower()}{caption[1:]}: {reason}")
        return Picture(path, f"{caption}. {remark}" if remark else f"{caption}.")

    yield from overview(study)
    caption = f"Change in bits per byte of each run, with {study.interval_name} intervals over documents"
    yield draw("changes", caption, lambda path: plot_changes(labels, study.totals, path, confidence))
    yield from comparison(study)
    yield from mixtures(study)
    yield from _groups(study, draw)
    yield from near_copies(study)
    yield from token_view(study)
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
    """Write a table and a picture of each run by task or group."""
    kind = study.grouping.kind
    if kind is None:
        yield Heading("Groups")
        yield Paragraph("All documents are one group: they have no Pile task, and --group-by names no field.")
        return
    yield Heading("Tasks" if study.grouping.is_pile else f"By {kind}")
    rows = zip(study.runs, study.groups, study.totals, study.pooled, strict=True)
    for place, (run, groups, total, pooled) in enumerate(rows, 1):
        yield Heading(run.label, 3)
        yield from group_table(study, run, [*groups, total, *([pooled] if pooled else [])])
        caption = f"{run.label}: bits per byte before and after, with intervals of the difference"
        confidence = study.grouping.bootstrap.confidence
        plot = partial(plot_tasks, [*groups, total], title=run.label, confidence=confidence)
        yield draw(f"tasks-{place}", caption, plot)
