"""A build that is under way: what is finished, and what its corpus was."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tttnn.corpus import Document
from tttnn.embedding import Embedder, same_embedder
from tttnn.manifest import TEXTS
from tttnn.quantization import import_faiss
from tttnn.texts import document_to_line
from tttnn.writing import FOLDERS, ShardWriter, write_json


STATE = "unfinished.json"
# A window is embedded at once, sorted by length inside. Texts wait in memory for one window, vectors for one shard.
WINDOW_DOCUMENTS = 2048
WINDOW_CHARACTERS = 32 << 20


def embedded_windows(
    documents: Iterable[Document], embedder: Embedder, batch_size: int = 32, first_row: int = 0
) -> Iterator[tuple[list[Document], np.ndarray]]:
    """
    Embed documents window by window, so that memory holds a bounded part of them.

    Args:
        documents (`Iterable[Document]`):
            Read as they are needed.
        embedder (`Embedder`):
            Makes the vectors; inside a window it sorts the texts by length.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts in one forward pass of the embedder.
        first_row (`int`, *optional*, defaults to `0`):
            Row of the first document, for error messages.

    Yields:
        `tuple[list[Document], np.ndarray]`: documents, and their vectors, float32 of shape `(n, dimension)`.

    Raises:
        `ValueError`: If `batch_size` is not positive, or a vector is not finite.
    """
    window: list[Document] = []
    size = 0
    for document in chain(documents, [None]):
        if document is not None:
            window.append(document)
            size += len(document.text)
        full = len(window) >= WINDOW_DOCUMENTS or size >= WINDOW_CHARACTERS
        if window and (full or document is None):
            yield window, embedder.encode_document([item.text for item in window], batch_size, first_row=first_row)
            first_row += len(window)
            window, size = [], 0


class UnfinishedBuild:
    """
    A build that is under way, in a folder of its own.

    Args:
        folder (`Path`):
            Made if it is not there; else the build in it is gone on with.
        settings (`dict[str, Any]`):
            What the files depend on, beside the corpus; among it `passage_tokens`.
        first_shard (`int`, *optional*, defaults to `0`):
            Number of the first shard.

    Raises:
        `ValueError`: If the build in the folder had other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], first_shard: int = 0) -> None:
        self.folder = folder
        self.settings = settings
        self.first_shard = first_shard
        self.shards: list[dict[str, Any]] = []
        self.complete = False  # whether the corpus has come to its end
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        state = folder / STATE
        if state.is_file():
            found = json.loads(state.read_bytes())
            different = _different(settings, found["settings"])
            if different:
                raise ValueError(
                    f"'{folder}' holds an interrupted build with other settings ({', '.join(different)}). Start with "
                    "the same settings to go on with it, or remove that folder."
                )
            # the settings of the first start, so that the files become what they would have been
            self.settings, self.shards, self.complete = found["settings"], found["shards"], found["complete"]

    def finish(self, writer: ShardWriter) -> None:
        """Note that a shard is whole."""
        self.shards.append(writer.finish())
        self._write_state()

    def _write_state(self) -> None:
        state = {"settings": self.settings, "complete": self.complete, "shards": self.shards}
        write_json(self.folder / STATE, state)

    def add_shards(
        self, rows: Iterator[Document], embedder: Embedder, shard_size: int, batch_size: int, show_progress_bar: bool
    ) -> list[dict[str, Any]]:
        """Go past the rows of finished shards, write the shards of all others, and give the entries of all."""
        done = 0
        for number, entry in enumerate(self.shards, self.first_shard):
            done += entry["rows"]
            if not holds(entry, number, rows):
                raise self._other_corpus(f"up to row {done} they differ")
        if (self.complete or self.shards and self.shards[-1]["rows"] < shard_size) and any(rows):
            raise self._other_corpus(f"that one had {done} rows, and this one has more")
        with tqdm(desc="Embedding", unit="row", initial=done, disable=not show_progress_bar) as progress:
            while first := list(islice(rows, 1)):
                number = self.first_shard + len(self.shards)
                vectors_of_shard = import_faiss().IndexFlatL2(embedder.dimension)
                of_passages = self.settings["passage_tokens"] is not None
                writer = ShardWriter(self.folder, number, vectors_of_shard, of_passages)
                of_shard = islice(chain(first, rows), shard_size)
                for window, vectors in embedded_windows(of_shard, embedder, batch_size, done):
                    writer.add(window, vectors)
                    done += len(window)
                    progress.update(len(window))
                self.finish(writer)
        if not self.shards:
            shutil.rmtree(self.folder)
            raise no_document()
        if not self.complete:
            self.complete = True
            self._write_state()
        return self.shards

    def _other_corpus(self, difference: str) -> ValueError:
        return ValueError(
            f"The corpus is not that of the interrupted build in '{self.folder}': {difference}. Build from the same "
            "corpus to go on, or remove that folder."
        )


def _different(settings: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Name the settings that differ."""
    names = sorted(name for name in {*settings, *others} if settings.get(name) != others.get(name))
    if "embedder" in names and same_embedder(settings["embedder"], others["embedder"]):
        names.remove("embedder")
    return names


def holds(entry: dict[str, Any], number: int, rows: Iterator[Document]) -> bool:
    """
    Compare a shard with a corpus.

    Args:
        entry (`dict[str, Any]`):
            Of the shard in the manifest.
        number (`int`):
            Of the shard.
        rows (`Iterator[Document]`):
            The corpus; as many rows are taken from it as the shard has.

    Returns:
        `bool`: whether the shard holds just these.
    """
    count, digest = 0, hashlib.sha256()
    for row in islice(rows, entry["rows"]):
        count += 1
        digest.update(document_to_line(row))
    return (count, digest.hexdigest()) == (entry["rows"], entry["files"][TEXTS.format(number)]["sha256"])


def no_document() -> ValueError:
    """Give the error of an empty corpus."""
    return ValueError("The corpus holds no document. Check its path, its split and the limit.")
