"""Which of the retrieved neighbors are used, and which of them copy the test document."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.selection.hull import Hull, hull_weights
    from tttnn.selection.near_copies import NEAR_COPY_OVERLAP, overlap
    from tttnn.selection.nearest import select
    from tttnn.selection.rules import DISTINCT, ORDERS, check_exclude
    from tttnn.selection.selectors import SELECTORS
    from tttnn.selection.sift import Sift, sift_picks

__all__ = [
    "DISTINCT",
    "Hull",
    "NEAR_COPY_OVERLAP",
    "ORDERS",
    "SELECTORS",
    "Sift",
    "check_exclude",
    "hull_weights",
    "overlap",
    "select",
    "sift_picks",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "check_exclude": "rules",
        "hull_weights": "hull",
        "overlap": "near_copies",
        "select": "nearest",
        "sift_picks": "sift",
        "DISTINCT": "rules",
        "Hull": "hull",
        "NEAR_COPY_OVERLAP": "near_copies",
        "ORDERS": "rules",
        "SELECTORS": "selectors",
        "Sift": "sift",
    },
)
