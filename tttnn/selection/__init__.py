"""Which of the retrieved neighbors are used, and which of them copy the scored text."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.selection.near_copies import overlap
    from tttnn.selection.nearest import ORDERS, check_exclude, select

__all__ = ["ORDERS", "check_exclude", "overlap", "select"]

__getattr__, __dir__ = door(
    __name__,
    {
        "check_exclude": "nearest",
        "overlap": "near_copies",
        "select": "nearest",
        "ORDERS": "nearest",
    },
)
