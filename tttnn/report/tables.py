"""Results of one run as Markdown tables and sentences."""

import math
from collections.abc import Sequence

from tttnn.intervals import Bootstrap
from tttnn.records import DocumentRecord
from tttnn.report.results import POOLED, Result, pool
from tttnn.report.runs import worse_than_before


NONE = "–"


def document_table(records: list[DocumentRecord], prompt: str = "none") -> str:
    """
    Lay out a result document by document, with the pooled result and its interval below.

    Args:
        records (`list[DocumentRecord]`):
            At least one.
        prompt (`str`, *optional*, defaults to `"none"`):
            The `prompt` of the run. With `"context"` documents are counted as worse than the prompt alone.

    Returns:
        `str`: a Markdown table and a line.
    """
    rows = [
        [
            f"{record.id} (untrained)" if record.status == "untrained" else record.id,
            str(record.num_bytes),
            figure(record.bits_per_byte(0)),
            figure(record.bits_per_byte()),
            f"{record.nll[-1] / record.nll[0]:.3f}" if record.nll[0] else NONE,
            f"{record.seconds['total']:.1f}",
        ]
        for record in records
    ]
    header = ["document", "bytes", "bits per byte before", "after", "ratio", "seconds"]
    return f"{markdown_table(header, rows)}\n\n{pooled_line(records, prompt)}"


def pooled_line(records: list[DocumentRecord], prompt: str = "none") -> str:
    """
    Put a pooled result into a sentence.

    Args:
        records (`list[DocumentRecord]`):
            At least one.
        prompt (`str`, *optional*, defaults to `"none"`):
            The `prompt` of the run. With `"context"` documents are counted as worse than the prompt alone.

    Returns:
        `str`: bits per byte before and after, their ratio, the interval of the difference, and what stands out.
    """
    result = pool("all", records, Bootstrap())
    count = count_documents(len(records))
    interval = "one document has no interval"
    if not math.isnan(result.low):
        interval = f"95 % paired bootstrap over documents: {result.low:+.4f} to {result.high:+.4f}"
    setting = "with the prompt in context" if prompt == "context" else "without a prompt"
    line = (
        f"Pooled over {count} ({result.num_bytes} bytes), {setting}: {figure(result.before)} -> "
        f"{figure(result.after)} bits per byte, ratio {figure(result.ratio, '.3f')}, difference "
        f"{figure(result.difference, '+.4f')} ({interval}). {worse_than_before(prompt).capitalize()} on "
        f"{result.worse} of {count}."
    )
    if result.near_copies:
        line += f" {result.near_copies} had a near-copy of the document among their neighbors."
    if result.own_neighbors:
        line += f" {result.own_neighbors} had a part of the document itself among their neighbors."
    if result.partial:
        line += f" {result.partial} got neighbors from a part of the index only, because machines did not answer."
    untrained = [record.id for record in records if record.status == "untrained"]
    if untrained:
        line += f" Scored with the original model, because they could not be trained on: {', '.join(untrained)}."
    return line


def task_table(
    groups: dict[str, list[DocumentRecord]], total: str, weights: dict[str, float], prompt: str = "none"
) -> str:
    """
    Lay out a result task by task.

    Args:
        groups (`dict[str, list[DocumentRecord]]`):
            Records by task.
        total (`str`):
            Name of the weighted mean over tasks, the row below them. The last row pools all documents without weights.
        weights (`dict[str, float]`):
            Share of each task in the mean.
        prompt (`str`, *optional*, defaults to `"none"`):
            The `prompt` of the run. With `"context"` documents are counted as worse than the prompt alone.

    Returns:
        `str`: a Markdown table.
    """
    records, bootstrap = [record for members in groups.values() for record in members], Bootstrap()
    results = [pool(task, members, bootstrap) for task, members in groups.items()]
    results += [pool(total, records, bootstrap, groups, weights), pool(POOLED, records, bootstrap)]
    header = ["task", "documents", worse_than_before(prompt), "bits per byte before", "after", "ratio"]
    rows = [
        [
            result.group,
            str(result.documents),
            str(result.worse),
            *score_cells(result),
            f"{result.seconds['total']:.0f}",
        ]
        for result in results
    ]
    return markdown_table([*header, "difference, 95 % interval", "seconds"], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    Align cells as a Markdown table.

    Args:
        header (`Sequence[str]`):
            Names of the columns; the first is aligned left, the others right.
        rows (`Sequence[Sequence[str]]`):
            Each with a cell for each column.

    Returns:
        `str`: the table, without a line end.
    """
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(
        "-" * (width + 2) if not place else "-" * (width + 1) + ":" for place, width in enumerate(widths)
    )
    return "\n".join([line(cells[0]), rule + "|", *map(line, cells[1:])])


def score_cells(result: Result) -> list[str]:
    """Write before, after, ratio, and the difference with its interval."""
    interval = difference(result.difference, result.low, result.high)
    return [figure(result.before), figure(result.after), figure(result.ratio, ".3f"), interval]


def figure(value: float, form: str = ".4f") -> str:
    """Write a number, or a dash for NaN."""
    return NONE if math.isnan(value) else format(value, form)


def difference(value: float, low: float, high: float) -> str:
    """Write a difference with its interval: `"-0.1000 (-0.2000 to -0.0500)"`."""
    if math.isnan(value):
        return NONE
    return f"{value:+.4f} " + ("(no interval)" if math.isnan(low) else f"({low:+.4f} to {high:+.4f})")


def share(count: int, total: int) -> str:
    """Write a count with its share: `"3 (25 %)"`."""
    return f"{count} ({100 * count / total:.0f} %)" if total else str(count)


def count_documents(count: int) -> str:
    """Write `"1 document"` or `"2 documents"`."""
    return "1 document" if count == 1 else f"{count} documents"
