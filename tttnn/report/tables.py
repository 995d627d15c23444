"""Results of one run as Markdown tables and sentences."""

import math
from collections.abc import Sequence

from tttnn.records import DocumentRecord, summarize
from tttnn.report.intervals import bootstrap_difference


NONE = "–"


def document_table(records: list[DocumentRecord]) -> str:
    """
    Set out a result document by document, with the pooled result and its interval below.

    Args:
        records (`list[DocumentRecord]`):
            At least one.

    Returns:
        `str`: a Markdown table and a line.
    """
    rows = [
        [
            f"{record.id} (untrained)" if record.status == "untrained" else record.id,
            str(record.num_bytes),
            f"{record.bits_per_byte(0):.4f}",
            f"{record.bits_per_byte():.4f}",
            f"{record.nll[-1] / record.nll[0]:.3f}" if record.nll[0] else "",
            f"{record.seconds['total']:.1f}",
        ]
        for record in records
    ]
    header = ["document", "bytes", "bits per byte before", "after", "ratio", "seconds"]
    return f"{markdown_table(header, rows)}\n\n{pooled_line(records)}"


def pooled_line(records: list[DocumentRecord]) -> str:
    """
    Say a pooled result in a sentence.

    Args:
        records (`list[DocumentRecord]`):
            At least one.

    Returns:
        `str`: bits per byte before and after, their ratio, the interval of the difference, and what stands out.
    """
    pooled = summarize(records)
    low, high = bootstrap_difference({"all": records})
    before, after = pooled["bits_per_byte_before"], pooled["bits_per_byte"]
    worse = sum(record.nll[-1] > record.nll[0] for record in records)
    interval = "one document has no interval"
    if not math.isnan(low):
        interval = f"95 % paired bootstrap over documents: {low:+.4f} to {high:+.4f}"
    line = (
        f"Pooled over {_count(records)} ({pooled['num_bytes']} bytes): {before:.4f} -> {after:.4f} bits per byte, "
        f"ratio {after / before:.3f}, difference {after - before:+.4f} ({interval}). Worse on {worse} of "
        f"{_count(records)}."
    )
    if pooled["num_with_near_copies"]:
        line += f" {pooled['num_with_near_copies']:.0f} had a near-copy of the scored text among their neighbors."
    untrained = [record.id for record in records if record.status == "untrained"]
    if untrained:
        line += f" Untrained, and counted so: {', '.join(untrained)}."
    return line


def task_table(groups: dict[str, list[DocumentRecord]], total: str, weights: dict[str, float]) -> str:
    """
    Set out a result task by task.

    Args:
        groups (`dict[str, list[DocumentRecord]]`):
            Records by task.
        total (`str`):
            Name of the last row, the mean over tasks.
        weights (`dict[str, float]`):
            Share of each task in it.

    Returns:
        `str`: a Markdown table.
    """
    rows, pooled = [], {task: summarize(records) for task, records in groups.items()}
    for task, records in groups.items():
        interval = bootstrap_difference({task: records})
        before, after = pooled[task]["bits_per_byte_before"], pooled[task]["bits_per_byte"]
        seconds = sum(record.seconds["total"] for record in records)
        worse = sum(record.nll[-1] > record.nll[0] for record in records)
        rows.append([task, *_result_cells(len(records), worse, before, after, interval), f"{seconds:.0f}"])
    before, after = (
        sum(weights[task] * metrics[name] for task, metrics in pooled.items())
        for name in ("bits_per_byte_before", "bits_per_byte")
    )
    records = [record for members in groups.values() for record in members]
    worse = sum(record.nll[-1] > record.nll[0] for record in records)
    interval = bootstrap_difference(groups, weights)
    seconds = sum(record.seconds["total"] for record in records)
    rows.append([total, *_result_cells(len(records), worse, before, after, interval), f"{seconds:.0f}"])
    header = [
        "task",
        "documents",
        "worse",
        "bits per byte before",
        "after",
        "ratio",
        "difference, 95 % interval",
        "seconds",
    ]
    return markdown_table(header, rows)


def _result_cells(count: int, worse: int, before: float, after: float, interval: tuple[float, float]) -> list[str]:
    low, high = interval
    difference = f"{after - before:+.4f}" + ("" if math.isnan(low) else f" ({low:+.4f} to {high:+.4f})")
    return [str(count), str(worse), f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f}", difference]


def _count(records: list[DocumentRecord]) -> str:
    return "1 document" if len(records) == 1 else f"{len(records)} documents"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    Align cells as a Markdown table.

    Args:
        header (`Sequence[str]`):
            Names of the columns; the first is aligned left, the others right.
        rows (`Sequence[Sequence[str]]`):
            As many cells each.

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


def figure(value: float, form: str = ".4f") -> str:
    """
    Write a number for a table.

    Args:
        value (`float`):
            Any.
        form (`str`, *optional*, defaults to `".4f"`):
            Its format.

    Returns:
        `str`: a dash for NaN.
    """
    return NONE if math.isnan(value) else format(value, form)


def difference(value: float, low: float, high: float) -> str:
    """
    Write a difference with its interval for a table.

    Args:
        value (`float`):
            After minus before.
        low (`float`):
            Lower end; NaN where there is no interval.
        high (`float`):
            Upper end.

    Returns:
        `str`: `"-0.1000 (-0.2000 to -0.0500)"`.
    """
    if math.isnan(value):
        return NONE
    return f"{value:+.4f} " + ("(no interval)" if math.isnan(low) else f"({low:+.4f} to {high:+.4f})")


def share(count: int, total: int) -> str:
    """
    Write a count with its share.

    Args:
        count (`int`):
            Of some.
        total (`int`):
            Of all.

    Returns:
        `str`: `"3 (25 %)"`.
    """
    return f"{count} ({100 * count / total:.0f} %)" if total else str(count)
