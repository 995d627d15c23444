"""Documents with stable ids, and what they are read from: rows, tables, files, folders, data sets of the Hub."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.documents.folders import RowPlace
    from tttnn.documents.rows import Document, as_documents, check_text, is_position
    from tttnn.documents.sources import HUB_ID, Corpus, Place, read_documents

__all__ = [
    "HUB_ID",
    "Corpus",
    "Document",
    "Place",
    "RowPlace",
    "as_documents",
    "check_text",
    "is_position",
    "read_documents",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "HUB_ID": "sources",
        "Corpus": "sources",
        "Place": "sources",
        "RowPlace": "folders",
        "Document": "rows",
        "as_documents": "rows",
        "check_text": "rows",
        "is_position": "rows",
        "read_documents": "sources",
    },
)
