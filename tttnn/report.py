"""What records show: tables, paired bootstrap intervals, and the curve over neighbors."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tttnn.records import DocumentRecord, nll_matrix, summarize


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = dict[str, list[DocumentRecord]]


def bootstrap_difference(
    groups: Groups,
    weights: dict[str, float] | None = None,
    confidence: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Give an interval of the change in bits per byte, paired and resampled over documents.

    Each sample draws as many documents as there are, with replacement, within each group; a document brings its scores
    before and after together, so that what they share cancels. Sums are pooled within a group.

    Args:
        groups (`dict[str, list[DocumentRecord]]`):
            Records by task; one group for a pooled result.
        weights (`dict[str, float]`, *optional*):
            Share of each group, summing to 1. By default one group has all.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of samples inside the interval.
        num_samples (`int`, *optional*, defaults to `10000`):
            Samples drawn.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws.

    Returns:
        `tuple[float, float]`: lower and upper end of after minus before; NaN where a group has under two documents.
    """
    if any(len(records) < 2 for records in groups.values()):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    differences = np.zeros(num_samples)
    for name, records in groups.items():
        change = np.array([record.nll[-1] - record.nll[0] for record in records])
        num_bytes = np.array([record.num_bytes for record in records], dtype=np.float64)
        # draws of n documents, as counts of each document
        counts = generator.multinomial(len(records), np.full(len(records), 1 / len(records)), size=num_samples)
        share = 1.0 if weights is None else weights[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            differences += share * (counts @ change) / (counts @ num_bytes) / math.log(2)
    low, high = np.nanquantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


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


def task_table(groups: Groups, total: str, weights: dict[str, float]) -> str:
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


def import_figure() -> type["Figure"]:
    """
    Import what draws pictures, which is an extra.

    Returns:
        `type`: `matplotlib.figure.Figure`.

    Raises:
        `ImportError`: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Pictures need matplotlib. Install it: `pip install tttnn[report]`.") from None
    return Figure


def plot_curve(records: list[DocumentRecord], path: str | Path, title: str = "") -> Path:
    """
    Draw pooled bits per byte against the number of neighbors trained on.

    The band is the 95 % paired bootstrap interval, over documents, of the difference to no training.

    Args:
        records (`list[DocumentRecord]`):
            Scored after every neighbor (`score_every_neighbor=True`).
        path (`str` or `Path`):
            The picture to write; its suffix says the format.
        title (`str`, *optional*, defaults to `""`):
            Stands above.

    Returns:
        `Path`: the picture.

    Raises:
        `ImportError`: If matplotlib is missing.
    """
    figure = import_figure()(figsize=(6.4, 4.0), layout="constrained")
    from matplotlib.ticker import MaxNLocator

    scores = nll_matrix(records)
    num_bytes = np.array([record.num_bytes for record in records], dtype=np.float64)
    curve = scores.sum(axis=0) / num_bytes.sum() / math.log(2)
    counts = np.random.default_rng(0).multinomial(len(records), np.full(len(records), 1 / len(records)), size=10_000)
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = counts @ (scores - scores[:, :1]) / (counts @ num_bytes)[:, None] / math.log(2)
    low, high = curve[0] + np.nanquantile(differences, [0.025, 0.975], axis=0)
    axes = figure.add_subplot()
    neighbors = np.arange(scores.shape[1])
    label = _count(records)
    if len(records) > 1:
        label += ", pooled"
        band = "95 % interval of the change"
        axes.fill_between(neighbors, low, high, color="#0072B2", alpha=0.2, linewidth=0, label=band)
    axes.plot(neighbors, curve, color="#0072B2", marker="o", markersize=4, label=label)
    axes.axhline(curve[0], color="#555555", linewidth=1, linestyle="--", label="before training")
    axes.set(xlabel="neighbors trained on", ylabel="bits per byte", title=title)
    axes.set_xlim(-0.5, max(neighbors[-1], 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return Path(path)
