"""tttnn: test-time training on nearest neighbors, for Hugging Face transformers."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.adaptation.arguments import TestTimeTrainingArguments
    from tttnn.adaptation.callbacks import JournalCallback, TestTimeCallback
    from tttnn.adaptation.restore import restored
    from tttnn.adaptation.stopping import NeighborEarlyStoppingCallback
    from tttnn.adaptation.trainer import TestTimeTrainer
    from tttnn.documents import Document, read_documents
    from tttnn.embedding import Embedder
    from tttnn.generation.generator import Generation, TestTimeGenerator
    from tttnn.neighbors import Neighbor
    from tttnn.records import DocumentRecord
    from tttnn.retrieval.retriever import NeighborRetriever

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022
    "Document",
    "DocumentRecord",
    "Embedder",
    "Generation",
    "JournalCallback",
    "Neighbor",
    "NeighborEarlyStoppingCallback",
    "NeighborRetriever",
    "TestTimeCallback",
    "TestTimeGenerator",
    "TestTimeTrainer",
    "TestTimeTrainingArguments",
    "read_documents",
    "restored",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "Document": "documents",
        "DocumentRecord": "records",
        "Embedder": "embedding",
        "Generation": "generation.generator",
        "JournalCallback": "adaptation.callbacks",
        "Neighbor": "neighbors",
        "NeighborEarlyStoppingCallback": "adaptation.stopping",
        "NeighborRetriever": "retrieval.retriever",
        "TestTimeCallback": "adaptation.callbacks",
        "TestTimeGenerator": "generation.generator",
        "TestTimeTrainer": "adaptation.trainer",
        "TestTimeTrainingArguments": "adaptation.arguments",
        "read_documents": "documents",
        "restored": "adaptation.restore",
    },
)
