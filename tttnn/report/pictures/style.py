"""How pictures look: colors, sizes, small multiples, and files that are the same each time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which the color-blind can tell apart, without yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GRAY = "#9A9A9A"
WIDTH = 9.6  # inches; at 150 dots each, a page shows them at two thirds of their size
DPI = 150
STYLE = {
    **{"font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans", "text.parse_math": False},
}


class NothingToDraw(Exception):
    """The runs lack what a picture shows; the message says what is missing."""


def import_figure() -> type["Figure"]:
    """
    Import the class that draws pictures; matplotlib is an extra.

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


@contextmanager
def picture(path: str | Path, width: float = WIDTH, height: float = 4.0) -> Iterator["Figure"]:
    """Open a figure in this library's style, whatever the user's style is, and save it at the end; sizes in inches."""
    figure_type = import_figure()
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        figure = figure_type(figsize=(width, height), layout="constrained")
        yield figure
        # neither a date nor a version, so that the same records give the same bytes
        metadata: dict[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, dpi=DPI, metadata=metadata.get(Path(path).suffix))


def panels(figure: "Figure", titles: list[str], columns: int, **options: Any) -> list["Axes"]:
    """Divide a figure into small multiples, one per title; the options are those of `Figure.subplots`."""
    columns = min(columns, len(titles))
    grid = figure.subplots(math.ceil(len(titles) / columns), columns, squeeze=False, **options)
    every = list(grid.ravel())
    for axes in every[len(titles) :]:
        axes.set_visible(False)
    for axes in every[: len(titles)][-columns:]:
        axes.tick_params(labelbottom=True)  # the place below may be empty
    for axes, title in zip(every, titles, strict=False):
        axes.set_title(short(title), loc="left")
    return every[: len(titles)]


def line_style(place: int) -> dict[str, Any]:
    """Give options of `Axes.plot` by the place of a line; the first 28 lines differ."""
    return {
        "color": COLORS[place % len(COLORS)],
        "linestyle": LINES[place // len(COLORS) % len(LINES)],
        "marker": MARKERS[(place + place // len(COLORS)) % len(MARKERS)],
        "markersize": 4,
    }


def whole_numbers(axes: "Axes") -> None:
    """Mark only whole numbers on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_axis(axes: "Axes", ticks: list[int] | None = None) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at `ticks`, or at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    if ticks:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    # the usual labels are formulas, and formulas are off for the sake of labels with a dollar sign
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if ticks else "{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def short(label: str, length: int = 34) -> str:
    """Cut a long label in its middle."""
    label = " ".join(label.split())
    half = (length - 1) // 2
    return label if len(label) <= length else f"{label[:half]}…{label[-half:]}"
