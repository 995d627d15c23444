"""Pictures of what scores cost and depend on: seconds, distances to neighbors, size of the index."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttnn.records import DocumentRecord
from tttnn.report.pictures.style import (
    COLORS,
    GRAY,
    NothingToDraw,
    line_style,
    log_axis,
    panels,
    picture,
    short,
    whole_numbers,
)
from tttnn.report.results import Grouping, Result, keyed, shared_records
from tttnn.report.runs import Run
from tttnn.report.tables import count_documents


if TYPE_CHECKING:
    from matplotlib.axes import Axes


PHASES = {"retrieve": COLORS[4], "train": COLORS[0], "score": COLORS[2], "rest": GRAY}


def phase_seconds(total: Result) -> dict[str, float]:
    """Give the mean seconds per document to retrieve, train and score, and the rest."""
    seconds = {name: total.seconds[name] / total.documents for name in ("retrieve", "train", "score")}
    rest = total.seconds["total"] / total.documents - sum(seconds.values())
    return {**seconds, "rest": max(0.0, rest)}


def plot_seconds(labels: list[str], totals: list[Result], path: str | Path) -> None:
    """Draw the seconds per document by phase, a bar for each run."""
    rows = [phase_seconds(total) for total in totals][::-1]
    if not any(sum(row.values()) for row in rows):
        raise NothingToDraw("no time was recorded.")
    with picture(path, height=1.4 + 0.34 * len(rows)) as figure:
        axes, left = figure.add_subplot(), np.zeros(len(rows))
        for name, color in PHASES.items():
            widths = np.array([row[name] for row in rows])
            axes.barh(range(len(rows)), widths, 0.7, left=left, color=color, edgecolor="white", label=name)
            left += widths
        axes.set_yticks(range(len(rows)), [short(label) for label in labels[::-1]])
        axes.set_xlabel("seconds per document")
        axes.margins(y=0.02)
        figure.legend(loc="outside lower center", ncols=len(PHASES))


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Find the places of the points (seconds, score) that no other beats on both sides, the fastest first."""
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: points[place]):
        if not front or points[place][1] < points[front[-1]][1]:
            front.append(place)
    return front


def plot_pareto(runs: list[Run], grouping: Grouping, path: str | Path) -> str:
    """Draw scores against seconds on the documents that all runs have, and name the runs on the Pareto front."""
    if len(runs) < 2:
        raise NothingToDraw("it needs two runs or more.")
    shared = shared_records(runs)
    if not any(record.num_bytes for record in shared[0]):
        raise NothingToDraw("the runs have no document in common.")
    totals = [grouping.total(records) for records in shared]
    points = [
        (sum(map(seconds_without_curve, records)) / total.documents, total.after)
        for records, total in zip(shared, totals, strict=True)
    ]
    front = pareto_front(points)
    with picture(path, height=max(4.2, 1.2 + 0.23 * len(runs))) as figure:
        axes = figure.add_subplot()
        ends = [points[place] for place in front]
        axes.step(*zip(*ends, strict=True), where="post", color="#555555", linewidth=1, label="Pareto front")
        for place, (seconds, score) in enumerate(points):
            style = line_style(place) | {"linestyle": "none", "markersize": 8}
            label = f"{place + 1}  {short(runs[place].label)}"
            axes.plot([seconds], [score], label=label, **style)
            offset: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 9}
            axes.annotate(str(place + 1), (seconds, score), **offset)
        times = [seconds for seconds, _ in points]
        if min(times) > 0 and max(times) > 10 * min(times):
            log_axis(axes)
        axes.set(xlabel="seconds per document", ylabel="bits per byte after")
        axes.margins(0.08)
        figure.legend(loc="outside right upper")
    names = ", ".join(runs[place].label for place in front)
    return (
        f"Over the {count_documents(len(shared[0]))} that all runs have. The seconds are those of two scores a "
        f"document, even if a run scored after every neighbor, and of retrieval as timed, from a cache or not. On the "
        f"Pareto front: {names}."
    )


def seconds_without_curve(record: DocumentRecord) -> float:
    """Give the seconds that a document would take with only a score before and one after."""
    between = max(0, len(record.nll) - 2) / len(record.nll)
    return record.seconds["total"] - between * record.seconds["score"]


def mean_distance(record: DocumentRecord) -> float:
    """Give the mean squared L2 distance of a document's neighbors; NaN without a known distance."""
    distances = [distance for distance in record.distances if math.isfinite(distance)]
    return sum(distances) / len(distances) if distances else math.nan


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Give Spearman's rank correlation; NaN for under three pairs, or if one side is constant."""
    from scipy.stats import spearmanr

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(spearmanr(first, second).statistic)


def plot_distance_gain(runs: list[Run], path: str | Path) -> None:
    """Draw the gain of each document against the mean distance of its neighbors, a panel for each run."""
    clouds: dict[str, np.ndarray] = {}
    for run in runs:
        records = [record for record in run.records if record.num_bytes and math.isfinite(mean_distance(record))]
        if records:
            gains = [record.bits_per_byte(0) - record.bits_per_byte() for record in records]
            clouds[run.label] = np.array([[mean_distance(record) for record in records], gains])
    if not clouds:
        raise NothingToDraw("no document has neighbors with distances.")
    titles = []
    for label, (distances, gains) in clouds.items():
        correlation = rank_correlation(distances, gains)
        known = "no rank correlation" if math.isnan(correlation) else f"rank correlation {correlation:+.2f}"
        titles.append(f"{short(label)}\n{known}, n = {len(gains)}")
    columns = min(3, len(clouds))
    with picture(path, height=1.2 + 2.3 * math.ceil(len(clouds) / columns)) as figure:
        for axes, title, cloud in zip(panels(figure, titles, columns), titles, clouds.values(), strict=True):
            axes.set_title(title, loc="left")  # of two lines
            axes.axhline(0, color="#555555", linewidth=1, linestyle="--")
            axes.scatter(cloud[0], cloud[1], s=16, color=COLORS[0], alpha=0.6, linewidths=0)
        figure.supxlabel("mean distance of a document's neighbors (squared L2)", fontsize=10)
        figure.supylabel("gain, before minus after (bits per byte)", fontsize=10)


def plot_distances(runs: list[Run], path: str | Path) -> None:
    """Draw the distance to the k-th neighbor over documents; runs with equal neighbors share a line."""
    lines: list[tuple[list[str], dict[tuple[str, int], list[float]]]] = []
    for run in runs:
        rows = {key: sorted(filter(math.isfinite, record.distances)) for key, record in keyed(run.records).items()}
        rows = {key: row for key, row in rows.items() if row}
        for labels, others in lines:
            shared = rows.keys() & others.keys()
            if shared and all(rows[key] == others[key] for key in shared):
                labels.append(run.label)
                others.update(rows)
                break
        else:
            lines += [([run.label], rows)] if rows else []
    if not lines:
        raise NothingToDraw("no document has neighbors with distances.")
    with picture(path, height=4.4) as figure:
        axes = figure.add_subplot()
        for place, (labels, rows) in enumerate(lines):
            most = max(map(len, rows.values()))
            columns = [[row[rank] for row in rows.values() if len(row) > rank] for rank in range(most)]
            quartiles = np.array([np.quantile(column, [0.25, 0.5, 0.75]) for column in columns]).T
            style, ranks = line_style(place), np.arange(1, most + 1)
            label = short(labels[0]) + (f" and {len(labels) - 1} more" if len(labels) > 1 else "")
            axes.plot(ranks, quartiles[1], label=label, **style)
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(ranks, quartiles[0], quartiles[2], **band)
        _draw_random(runs, axes)
        axes.set(xlabel="k-th nearest neighbor trained on", ylabel="distance to the query (squared L2)")
        axes.set_ylim(bottom=0)
        whole_numbers(axes)
        figure.legend(loc="outside lower center", ncols=3)


def _draw_random(runs: list[Run], axes: "Axes") -> None:
    for sample in dict.fromkeys(tuple(run.random_distances) for run in runs if run.random_distances):
        low, middle, high = np.quantile(sample, [0.25, 0.5, 0.75])
        axes.axhline(middle, color="#000000", linewidth=1.2, linestyle="--", label="random documents")
        axes.axhspan(low, high, color="#000000", alpha=0.1, linewidth=0)


def plot_index_sizes(runs: list[Run], totals: list[Result], path: str | Path) -> None:
    """Draw bits per byte after against the size of the index, a line for each folder of runs."""
    families: dict[Path, list[tuple[int, Result, str]]] = {}
    for run, total in zip(runs, totals, strict=True):
        size = run.settings.get("num_indexed")
        if run.fraction is not None and size and not math.isnan(total.after):
            families.setdefault(run.folder, []).append((size, total, run.label.split(" fraction ")[0]))
    if not families:
        raise NothingToDraw("no run used parts of an index (--index-fraction 0.01 0.1 0.5 1.0).")
    with picture(path) as figure:
        axes = figure.add_subplot()
        for place, points in enumerate(families.values()):
            points.sort(key=lambda point: point[0])
            style, sizes = line_style(place), [size for size, _, _ in points]
            axes.plot(sizes, [total.after for _, total, _ in points], label=short(points[0][2]), **style)
            before = [total.before for _, total, _ in points]
            axes.plot(sizes, before, color=style["color"], linestyle=":", label=f"{short(points[0][2])}, before")
            for size, total, _ in points:
                if not math.isnan(total.low):
                    ends = [total.before + total.low, total.before + total.high]
                    axes.plot([size, size], ends, color=style["color"], linewidth=1.2)
        every = sorted({size for points in families.values() for size, _, _ in points})
        log_axis(axes, every if len(every) <= 8 else None)
        axes.set(xlabel="documents in the index", ylabel="bits per byte")
        figure.legend(loc="outside lower center", ncols=3)
