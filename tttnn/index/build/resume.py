"""A build that is under way: what is finished, and what its corpus was."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tttnn.documents import Document
from tttnn.embedding import Embedder, same_embedder
from tttnn.errors import InputError
from tttnn.files import write_json
from tttnn.index.build.workspace import FOLDERS, STATE, check_own, check_sizes, intact, remove_build
from tttnn.index.build.writers import ShardWriter, VectorWriter
from tttnn.index.manifest import TEXTS, VECTORS, ShardEntry
from tttnn.index.texts import document_to_line


# A window is embedded at once, sorted by length inside. Texts wait in memory for one window, vectors for one shard.
WINDOW_DOCUMENTS = 2048
WINDOW_CHARACTERS = 32 << 20


def embedded_windows(
    documents: Iterable[Document], embedder: Embedder, batch_size: int | None = None, first_row: int = 0
) -> Iterator[tuple[list[Document], np.ndarray]]:
    """
    Embed documents window by window, so that memory holds a bounded part of them.

    Args:
        documents (`Iterable[Document]`):
            Read as they are needed.
        embedder (`Embedder`):
            Makes the vectors; inside a window it sorts the texts by length.
        batch_size (`int`, *optional*):
            Texts in one forward pass of the embedder. By default `Embedder.default_batch_size`.
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
    A build that is under way, in a folder of its own: it goes on after the last window that was embedded.

    Args:
        folder (`Path`):
            Made if it is not there; else the build in it is gone on with.
        settings (`dict[str, Any]`):
            What vectors and texts depend on, beside the corpus; `passage_tokens` among it.
        shard_size (`int`):
            Rows in a shard, where the folder holds no build that has its own.
        first_shard (`int`, *optional*, defaults to `0`):
            Number of the first shard.

    Raises:
        `FileExistsError`: If the folder holds something else than a build.
        `ValueError`: If the build in the folder had other settings, or is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], shard_size: int, first_shard: int = 0) -> None:
        self.folder = folder
        self.settings = settings
        self.shard_size = shard_size
        self.first_shard = first_shard
        self.shards: list[ShardEntry] = []
        self.num_rows = 0  # of the shard that is under way
        self.complete = False  # whether the corpus has come to its end
        check_own(folder)
        if (folder / STATE).is_file():
            self._go_on()
        else:
            folder.mkdir(exist_ok=True)
            self._note(0)
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True)

    def _go_on(self) -> None:
        asked = self.settings
        with intact(self.folder):
            found = json.loads((self.folder / STATE).read_bytes())
            # the settings of the first start, so that the files become what they would have been
            self.settings, self.complete = found["settings"], found["complete"]
            self.shards = [
                ShardEntry.from_json(entry, self.first_shard + n) for n, entry in enumerate(found["shards"])
            ]
            self.shard_size, self.num_rows = found["shard_size"], found["num_rows"]
            different = _different(asked, self.settings)
            files = {name: file for entry in self.shards for name, file in entry.files.items()}
            # vectors may have been converted since, and are looked at when they are moved
            check_sizes({name: file for name, file in files.items() if not name.startswith("index/")}, self.folder)
        if different:
            raise InputError(
                f"'{self.folder}' holds an interrupted build with other settings ({', '.join(different)}). Start with "
                "the same settings to go on with it, or remove that folder."
            )

    def finish(self, writer: ShardWriter, vectors: Any) -> None:  # noqa: ANN401
        """
        Write the shard that is under way to its end, and note that it is whole.

        Args:
            writer (`ShardWriter`):
                Of its texts.
            vectors (`faiss.Index`):
                Of its rows.
        """
        self.shards.append(writer.finish(vectors))
        self._note(0)

    def _note(self, num_rows: int, complete: bool = False) -> None:
        self.num_rows, self.complete = num_rows, complete
        names, shards = ("settings", "shard_size", "num_rows", "complete"), {"shards": [*map(asdict, self.shards)]}
        write_json(self.folder / STATE, {name: getattr(self, name) for name in names} | shards)

    def add_shards(
        self, rows: Iterator[Document], embedder: Embedder, batch_size: int | None, show_progress_bar: bool
    ) -> list[ShardEntry]:
        """
        Go past the rows that are embedded, and embed all others.

        Args:
            rows (`Iterator[Document]`):
                The whole corpus.
            embedder (`Embedder`):
                Makes the vectors.
            batch_size (`int`, *optional*):
                Texts in one forward pass of the embedder.
            show_progress_bar (`bool`):
                Whether to count the rows on a bar.

        Returns:
            `list[ShardEntry]`: the entry of each shard, also of those that were finished before.

        Raises:
            `ValueError`: If there is no document, the corpus is another, or what was written before is damaged.
        """
        done = 0
        for number, entry in enumerate(self.shards, self.first_shard):
            done += entry.rows
            if not holds(entry, number, rows):
                raise self._other_corpus(f"up to row {done} they differ")
        if (self.complete or self.shards and self.shards[-1].rows < self.shard_size) and any(rows):
            raise self._other_corpus(f"that one had {done} rows, and this one has more")
        with tqdm(desc="Embedding", unit="row", initial=done + self.num_rows, disable=not show_progress_bar) as bar:
            while self._add_shard(rows, embedder, batch_size, done, bar):
                done += self.shards[-1].rows
        if not self.shards:
            self.remove()
            raise no_document()
        if not self.complete:
            self._note(0, complete=True)
        return self.shards

    def remove(self) -> None:
        """Drop all that was made, and the folder; a kill meanwhile leaves a build of nothing."""
        self.shards = []
        self._note(0)
        remove_build(self.folder)

    def _add_shard(
        self, rows: Iterator[Document], embedder: Embedder, batch_size: int | None, done: int, bar: tqdm
    ) -> bool:
        """Write the next shard, or the rest of it; whether there was any row."""
        number, of_passages = self.first_shard + len(self.shards), self.settings["passage_tokens"] is not None
        with intact(self.folder):
            writer = ShardWriter(self.folder, number, of_passages, self.num_rows)
            stored = VectorWriter(self.folder / VECTORS.format(number), embedder.dimension, self.num_rows)
        if not writer.go_past(rows):
            raise self._other_corpus(f"up to row {done + self.num_rows} they differ")
        of_shard = islice(rows, self.shard_size - self.num_rows)
        for window, vectors in embedded_windows(of_shard, embedder, batch_size, done + self.num_rows):
            writer.add(window)
            stored.add(vectors)
            self._note(writer.num_rows)
            bar.update(len(window))
        if writer.num_rows:
            self.finish(writer, stored.index())
        else:
            writer.texts.close()
        stored.remove()
        return writer.num_rows > 0

    def _other_corpus(self, difference: str) -> ValueError:
        return InputError(
            f"The corpus is not that of the interrupted build in '{self.folder}': {difference}. Build from the same "
            "corpus to go on, or remove that folder."
        )


def _different(settings: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Name the settings that differ."""
    names = sorted(name for name in {*settings, *others} if settings.get(name) != others.get(name))
    if "embedder" in names and same_embedder(settings["embedder"], others["embedder"]):
        names.remove("embedder")
    return names


def holds(entry: ShardEntry, number: int, rows: Iterator[Document]) -> bool:
    """
    Compare a shard with a corpus.

    Args:
        entry (`ShardEntry`):
            Of the shard in the manifest.
        number (`int`):
            Of the shard.
        rows (`Iterator[Document]`):
            The corpus; as many rows are taken from it as the shard has.

    Returns:
        `bool`: whether the shard holds just these.
    """
    count, digest = 0, hashlib.sha256()
    for row in islice(rows, entry.rows):
        count += 1
        digest.update(document_to_line(row))
    return (count, digest.hexdigest()) == (entry.rows, entry.files[TEXTS.format(number)].sha256)


def no_document() -> ValueError:
    """Give the error of an empty corpus."""
    return InputError("The corpus holds no document. Check its path, its split and the limit.")
