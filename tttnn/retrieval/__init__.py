"""The nearest documents of a text."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.retrieval.cache import NeighborCache
    from tttnn.retrieval.retriever import NeighborRetriever

__all__ = ["NeighborCache", "NeighborRetriever"]

__getattr__, __dir__ = door(
    __name__,
    {
        "NeighborCache": "cache",
        "NeighborRetriever": "retriever",
    },
)
