"""tttnn: test-time training on nearest neighbors, for Hugging Face transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from tttnn.callbacks import JournalCallback, NeighborEarlyStoppingCallback, TestTimeCallback
    from tttnn.corpus import Document, read_documents
    from tttnn.embedding import Embedder
    from tttnn.neighbors import Neighbor
    from tttnn.records import DocumentRecord
    from tttnn.restore import restored
    from tttnn.retriever import NeighborRetriever
    from tttnn.trainer import TestTimeTrainer
    from tttnn.training_args import TestTimeTrainingArguments

__version__ = "0.1.0"

_HOMES = {
    "Document": "corpus",
    "DocumentRecord": "records",
    "Embedder": "embedding",
    "JournalCallback": "callbacks",
    "Neighbor": "neighbors",
    "NeighborEarlyStoppingCallback": "callbacks",
    "NeighborRetriever": "retriever",
    "TestTimeCallback": "callbacks",
    "TestTimeTrainer": "trainer",
    "TestTimeTrainingArguments": "training_args",
    "read_documents": "corpus",
    "restored": "restore",
}

__all__ = [  # noqa: RUF022
    "Document",
    "DocumentRecord",
    "Embedder",
    "JournalCallback",
    "Neighbor",
    "NeighborEarlyStoppingCallback",
    "NeighborRetriever",
    "TestTimeCallback",
    "TestTimeTrainer",
    "TestTimeTrainingArguments",
    "read_documents",
    "restored",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # torch, transformers and Faiss take seconds to import: not before a name is asked for (PEP 562)
    if name not in _HOMES:
        raise AttributeError(f"module 'tttnn' has no attribute '{name}'")
    return getattr(import_module(f"tttnn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
