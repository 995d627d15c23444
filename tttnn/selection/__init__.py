"""Which of the retrieved neighbors are used, and which of them copy the test document."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.selection.near_copies import overlap
    from tttnn.selection.nearest import ORDERS, check_exclude, select
    from tttnn.selection.selectors import SELECTORS

__all__ = ["ORDERS", "SELECTORS", "check_exclude", "overlap", "select"]

__getattr__, __dir__ = door(
    __name__,
    {
        "check_exclude": "nearest",
        "overlap": "near_copies",
        "select": "nearest",
        "ORDERS": "nearest",
        "SELECTORS": "selectors",
    },
)
