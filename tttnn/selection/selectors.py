"""The ways to select neighbors, by name."""

from tttnn.neighbors import Selector
from tttnn.selection.hull import Hull
from tttnn.selection.nearest import select
from tttnn.selection.sift import Sift


SELECTORS: dict[str, Selector] = {"nearest": select, "sift": Sift(), "hull": Hull()}
