"""The ways to select neighbors, by name."""

from tttnn.neighbors import Selector
from tttnn.selection.nearest import select


SELECTORS: dict[str, Selector] = {"nearest": select}
