"""Documents embedded block by block, so that memory holds a bounded part of a corpus."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np

from tttnn.documents import Document
from tttnn.embedding import Embedder


# A block is embedded at once, sorted by length inside.
BLOCK_DOCUMENTS = 2048
BLOCK_CHARACTERS = 32 << 20


def embedded_blocks(
    documents: Iterable[Document],
    embedder: Embedder,
    batch_size: int | None = None,
    first_row: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Iterator[tuple[list[Document], np.ndarray]]:
    """Give documents and their vectors; `first_row` is the row of the first one, for errors of the embedder."""
    block: list[Document] = []
    size = 0
    for document in chain(documents, [None]):
        if document is not None:
            block.append(document)
            size += len(document.text)
        full = len(block) >= BLOCK_DOCUMENTS or size >= BLOCK_CHARACTERS
        if block and (full or document is None):
            texts = [item.text for item in block]
            yield block, embedder.encode_document(texts, batch_size, first_row, progress)
            first_row += len(block)
            block, size = [], 0
