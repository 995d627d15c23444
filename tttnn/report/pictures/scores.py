"""Pictures of scores: the curve of one run, tasks before and after, curves by task, changes of runs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttnn.intervals import Bootstrap
from tttnn.records import DocumentRecord, nll_matrix
from tttnn.report.pictures.style import COLORS, GRAY, NothingToDraw, line_style, panels, picture, short, whole_numbers
from tttnn.report.results import Grouping, Result
from tttnn.report.runs import Run
from tttnn.report.tables import count_documents


if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
            Title of the picture.

    Returns:
        `Path`: the picture.

    Raises:
        `ImportError`: If matplotlib is missing.
    """
    curve, low, high = _curve(records, Bootstrap())
    neighbors, label = np.arange(len(curve)), count_documents(len(records))
    with picture(path, 6.4) as figure:
        axes = figure.add_subplot()
        if len(records) > 1:
            label += ", pooled"
            band = "95 % interval of the change"
            axes.fill_between(neighbors, low, high, color=COLORS[0], alpha=0.2, linewidth=0, label=band)
        axes.plot(neighbors, curve, color=COLORS[0], marker="o", markersize=4, label=label)
        axes.axhline(curve[0], color="#555555", linewidth=1, linestyle="--", label="before training")
        axes.set(xlabel="neighbors trained on", ylabel="bits per byte", title=title)
        axes.set_xlim(-0.5, max(neighbors[-1], 1) + 0.5)
        whole_numbers(axes)
        axes.legend()
    return Path(path)


def _curve(records: list[DocumentRecord], bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool scores after every neighbor into bits per byte, with the interval of the change added to the start."""
    scores = nll_matrix(records)
    num_bytes = np.array([record.num_bytes for record in records], dtype=np.float64)
    curve = scores.sum(axis=0) / num_bytes.sum() / math.log(2)
    low, high = bootstrap.curve_interval(scores, num_bytes)
    return curve, curve[0] + low, curve[0] + high


def plot_tasks(results: list[Result], path: str | Path, title: str, confidence: float = 0.95) -> None:
    """Draw bits per byte before and after by task, with the interval of the difference."""
    results = [result for result in results if not math.isnan(result.before)][::-1]
    if not results:
        raise NothingToDraw("no document has a byte to score.")
    before, after, low, high = (
        np.array([getattr(result, name) for result in results]) for name in ("before", "after", "low", "high")
    )
    places = np.arange(len(results))
    with picture(path, height=1.3 + 0.34 * len(results)) as figure:
        axes = figure.add_subplot()
        axes.barh(places + 0.2, before, 0.38, color=GRAY, label="before")
        axes.barh(places - 0.2, after, 0.38, color=COLORS[0], label="after")
        known = ~np.isnan(low)
        if known.any():
            # an interval of the difference stands where the score after would be
            ends = np.clip([after - before - low, high - after + before], 0, None)[:, known]
            style: dict[str, Any] = {"fmt": "none", "ecolor": "#000000", "capsize": 2.5, "elinewidth": 1.2}
            label = f"{confidence:.0%} interval of the difference".replace("%", " %")
            axes.errorbar(after[known], places[known] - 0.2, xerr=ends, label=label, **style)
        axes.set_yticks(places, [short(f"{result.group} ({result.documents})") for result in results])
        axes.set(xlabel="bits per byte (number of documents in brackets)", title=short(title, 90))
        axes.margins(y=0.02)
        figure.legend(loc="outside lower center", ncols=3)


def plot_task_curves(runs: list[Run], grouping: Grouping, path: str | Path) -> None:
    """Draw bits per byte against neighbors for every task, with intervals of the change for up to two runs."""
    # with all neighbors in the context, a score after the k-th step is not one of k neighbors
    runs = [run for run in runs if "context" not in run.method]
    runs = [run for run in runs if run.used_settings().get("score_every_neighbor") and nll_matrix(run.records).any()]
    if not runs:
        raise NothingToDraw("no run was scored after every neighbor (--score-every-neighbor true).")
    split = [grouping.split(run.records) for run in runs]
    names = list(dict.fromkeys(name for groups in split for name in groups))
    rows = math.ceil(len(names) / min(4, len(names)))
    with picture(path, height=1.1 + 2.1 * rows + 0.2 * len(runs) / 3) as figure:
        for name, axes in zip(names, panels(figure, names, 4, sharex=True), strict=True):
            for place, (run, groups) in enumerate(zip(runs, split, strict=True)):
                records = groups.get(name, [])
                if not any(record.num_bytes for record in records):
                    continue
                curve, low, high = _curve(records, grouping.bootstrap)
                style = line_style(place) | {"markersize": 2.5}
                axes.plot(np.arange(len(curve)), curve, label=short(run.label), **style)
                if len(runs) <= 2 and len(records) > 1:
                    band = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
                    axes.fill_between(np.arange(len(curve)), low, high, **band)
            whole_numbers(axes)
        figure.supxlabel("neighbors trained on, pass by pass", fontsize=10)
        figure.supylabel("bits per byte", fontsize=10)
        _shared_legend(figure)


def _shared_legend(figure: "Figure", columns: int = 3) -> None:
    """Put one legend above all panels: the name of their axis is below them."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=min(columns, len(handles)))


def plot_changes(labels: list[str], totals: list[Result], path: str | Path, confidence: float = 0.95) -> None:
    """Draw the change in bits per byte of every run, with its interval."""
    rows = [(label, total) for label, total in zip(labels, totals, strict=True) if not math.isnan(total.difference)]
    if not rows:
        raise NothingToDraw("no document has a byte to score.")
    with picture(path, height=1.0 + 0.32 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color="#555555", linewidth=1, linestyle="--")
        for place, (_, total) in enumerate(rows[::-1]):
            if not math.isnan(total.low):
                axes.plot([total.low, total.high], [place, place], color=COLORS[0], linewidth=2)
            axes.plot([total.difference], [place], marker="o", color=COLORS[0])
        axes.set_yticks(range(len(rows)), [short(label) for label, _ in rows[::-1]])
        axes.set_xlabel(f"bits per byte, after minus before, with {100 * confidence:g} % interval; left is better")
        axes.grid(axis="y", color="#EEEEEE")
        axes.set_axisbelow(True)
        axes.set_ylim(-0.6, len(rows) - 0.4)
