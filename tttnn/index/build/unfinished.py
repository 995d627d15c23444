"""An index under way, in the folder where it will be: built, added to, imported and saved by the same steps."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tttnn.documents import Document
from tttnn.embedding import Embedder, same_embedder
from tttnn.errors import InputError
from tttnn.files import sync, write_json
from tttnn.index.build.blocks import embedded_blocks
from tttnn.index.build.compress import OpenedInTurn, converted, draw_queries, emptied, measure, trained_for, vectors_of
from tttnn.index.build.workspace import (
    SEARCH_FOLDERS,
    STATE,
    TRAINED,
    VIEWER_FOLDER,
    WORK,
    check_vacant,
    clear,
    intact,
    is_under_way,
    names_in,
    read_state,
    settle,
    show_only_parquet,
    work_file,
)
from tttnn.index.build.writers import Growing, ShardWriter
from tttnn.index.integrity import note_built
from tttnn.index.manifest import (
    MANIFEST,
    SEARCH_FILES,
    SHARD_FILES,
    TEXTS,
    VECTORS,
    VIEWER,
    FileEntry,
    Manifest,
    Recall,
    ShardEntry,
    Storage,
)
from tttnn.index.texts import document_to_line
from tttnn.index.vectors import STORAGE_PRESETS, factory_for, read_vectors, write_vectors


NO_DOCUMENT = "The corpus holds no document. Check its path, its split and the limit."


class UnfinishedIndex:
    """
    An index under way, in the folder where it will be.

    Texts and Faiss files are written under their names. The hidden folder `.unfinished` holds all else: the state,
    vectors as they came, what was trained, and the files for viewers. The manifest comes last, and makes the index.
    A build that was killed at any point resumes after the last block that was embedded, once its files are checked.
    An index in the folder stays as it is until the manifest names the new shards too.

    Args:
        folder (`Path`):
            Where an interrupted build resumes; otherwise it must be empty, or hold an index of `first_shard` shards.
        settings (`dict[str, Any]`):
            What vectors and texts depend on, beside the corpus; `passage_tokens` among it.
        shard_size (`int`):
            Rows in a shard, unless an interrupted build has its own.
        first_shard (`int`, *optional*, defaults to `0`):
            Number of the first shard to make.
        shards (`Sequence[ShardEntry]`, *optional*):
            Shards that were made elsewhere, if no build is interrupted here; their files are in place.
        verified (`bool`, *optional*, defaults to `False`):
            Whether the files of an interrupted build are compared by their sizes only, not by their checksums.

    Raises:
        `FileExistsError`: If the folder holds something else.
        `ValueError`: If the interrupted build had other settings, or is damaged.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        shard_size: int,
        first_shard: int = 0,
        *,
        shards: Sequence[ShardEntry] = (),
        verified: bool = False,
    ) -> None:
        self.folder, self.settings, self.shard_size, self.first_shard = folder, settings, shard_size, first_shard
        self.shards = [*shards]
        self.growing: Growing | None = None
        self.complete = bool(shards)  # whether the corpus has come to its end
        self.verified = verified
        # what was trained for a preset, and the Faiss files that were made from it
        self.preset = "flat"
        self.trained: FileEntry | None = None
        self.stored: list[FileEntry] = []
        if is_under_way(folder):
            self._resume()
        elif shards:
            self._note()
            self._make_folders()
        else:
            self._start()

    # --- the state ---

    def _start(self) -> None:
        if self.first_shard == 0:
            check_vacant(self.folder)
        else:
            foreign = [self.folder / WORK] if names_in(self.folder / WORK) - {STATE + ".tmp"} else []
            for path in (*foreign, *self._later_files(self.first_shard)):
                self._refuse(path)
        (self.folder / WORK).mkdir(parents=True, exist_ok=True)
        self._note()  # before anything else is in the folder: by its state a build is known to be one
        self._make_folders()

    def _make_folders(self) -> None:
        show_only_parquet(self.folder)
        for name in SEARCH_FOLDERS:
            (self.folder / name).mkdir(exist_ok=True)
        for path in (self.folder, self.folder.parent):
            sync(path)

    def _resume(self) -> None:
        state = read_state(self.folder)
        with intact(self.folder):
            different = different_settings(self.settings, state["settings"])
            is_same_place = self.first_shard == state["first_shard"]
            different += [] if is_same_place else ["first_shard"]
            is_begun = state["shards"] or state["growing"]
        if different and is_same_place and not is_begun:
            self._note()
            self._make_folders()
            return
        if different:
            raise InputError(
                f"'{self.folder}' holds an interrupted build with other settings ({', '.join(different)}). Start with "
                "the same settings to end it, or remove it."
            )
        with intact(self.folder):
            # the settings of the first start, so that the files become what they would have been
            self.settings, self.shard_size, self.complete = state["settings"], state["shard_size"], state["complete"]
            pairs = enumerate(state["shards"], self.first_shard)
            self.shards = [ShardEntry.from_json(entry, number) for number, entry in pairs]
            self.growing = state["growing"] and Growing.from_json(state["growing"])
            self.preset = state["preset"]
            self.trained = state["trained"] and FileEntry.from_json(state["trained"], TRAINED)
            self.stored = [FileEntry.from_json(entry, "stored") for entry in state["stored"]]
            self._check_files()
        self._make_folders()

    def _check_files(self) -> None:
        """Compare the checksum of each file that was written to its end."""
        files: dict[Path, FileEntry] = {}
        for number, shard in enumerate(self.shards, self.first_shard):
            exact = work_file(self.folder, VECTORS, number)
            if not exact.is_file() and (self.folder / VECTORS.format(number)).is_file():
                os.replace(self.folder / VECTORS.format(number), exact)  # stored as it is, but the build did not end
            moved = {VECTORS: exact, VIEWER: work_file(self.folder, VIEWER, number)}
            for name in SHARD_FILES:
                files[moved.get(name, self.folder / name.format(number))] = shard.files[name.format(number)]
        for number, file in enumerate(self.stored, self.first_shard):
            files[self.folder / VECTORS.format(number)] = file
        if self.trained is not None:
            files[self.folder / WORK / TRAINED] = self.trained
        for path, expected in files.items():
            if not path.is_file():
                raise FileNotFoundError(f"'{path}' is missing")
            if path.stat().st_size != expected.bytes or not self.verified and FileEntry.of(path) != expected:
                raise InputError(f"'{path}' is not what was written")

    def _note(self) -> None:
        """Write the state; the files that it names are on disk, and so must be their names."""
        for path in (self.folder / name for name in (WORK, *SEARCH_FOLDERS)):
            if path.is_dir():
                sync(path)
        state = {
            "settings": self.settings,
            "first_shard": self.first_shard,
            "shard_size": self.shard_size,
            "shards": [asdict(shard) for shard in self.shards],
            "growing": self.growing and asdict(self.growing),
            "complete": self.complete,
            "preset": self.preset,
            "trained": self.trained and asdict(self.trained),
            "stored": [asdict(file) for file in self.stored],
        }
        write_json(self.folder / WORK / STATE, state)

    # --- shards ---

    @property
    def number(self) -> int:
        """The number of the next shard."""
        return self.first_shard + len(self.shards)

    def _writer(self, dimension: int) -> ShardWriter:
        of_passages = self.settings["passage_tokens"] is not None
        with intact(self.folder):
            return ShardWriter(self.folder, self.number, dimension, of_passages, self.growing)

    def _finish_shard(self, writer: ShardWriter) -> None:
        self.shards.append(writer.finish())
        self.growing = None
        self._note()

    def write_shard(self, documents: Iterable[Document], vectors: Any, source: str) -> None:  # noqa: ANN401
        """Write a shard of the documents of a source, and of the Faiss index of their vectors."""
        writer = self._writer(vectors.d)
        writer.add(documents)
        if writer.num_rows != vectors.ntotal:
            raise InputError(
                f"{source} holds {writer.num_rows} documents, but its index holds {vectors.ntotal} vectors. They do "
                "not belong together, or one was not fetched to its end."
            )
        for part in vectors_of(vectors):
            writer.vectors.write(part.tobytes())
        self._finish_shard(writer)

    def embed(
        self, rows: Iterator[Document], embedder: Embedder, batch_size: int | None, bar: tqdm, row: int = 0
    ) -> None:
        """Go past the rows of the corpus that are embedded, and embed all others; the first has the number `row`."""
        done = self._go_past_shards(rows)
        bar.update(done)
        while self.growing or (first := [*islice(rows, 1)]):
            writer = self._writer(embedder.dimension)
            if self.growing:
                first = []
                if not writer.texts.go_past(rows):
                    raise self._other_corpus(f"up to row {done + writer.num_rows} they differ")
            bar.update(writer.num_rows)
            of_shard = chain(first, islice(rows, self.shard_size - writer.num_rows - len(first)))
            first_row = row + done + writer.num_rows
            for block, vectors in embedded_blocks(of_shard, embedder, batch_size, first_row, bar.update):
                writer.add(block)
                writer.vectors.write(vectors.tobytes())
                self.growing = writer.growing()
                self._note()
            done += writer.num_rows
            self._finish_shard(writer)
        if not self.shards:
            self.discard()
            raise InputError(NO_DOCUMENT)
        if not self.complete:
            self.complete = True
            self._note()

    def _go_past_shards(self, rows: Iterator[Document]) -> int:
        done = 0
        for number, entry in enumerate(self.shards, self.first_shard):
            done += entry.rows
            if not holds(entry, number, rows):
                raise self._other_corpus(f"up to row {done} they differ")
        if (self.complete or self.shards and self.shards[-1].rows < self.shard_size) and any(rows):
            raise self._other_corpus(f"that one had {done} rows, and this one has more")
        return done

    def _other_corpus(self, difference: str) -> ValueError:
        return InputError(
            f"The corpus is not that of the interrupted build in '{self.folder}': {difference}. Start with the same "
            "corpus to end that build, or remove it."
        )

    # --- storage ---

    def store_exactly(self) -> Storage:
        """Put the Faiss files in place as they are."""
        self._choose("flat")
        for number in range(self.first_shard, self.number):
            os.replace(work_file(self.folder, VECTORS, number), self.folder / VECTORS.format(number))
        return Storage("flat", "Flat", {}, self.shard_size)

    def _choose(self, preset: str) -> None:
        """Drop what was made for another preset; the exact vectors stay until the manifest is in place."""
        if self.preset != preset:
            self.preset, self.trained, self.stored = preset, None, []
            self._note()

    def store(
        self, preset: str, embedder: Embedder, recall_target: float = 0.95, like: Path | None = None
    ) -> tuple[Storage, Recall | None]:
        """
        Turn the exact vectors into the Faiss files of a preset, all divided by the same centroids.

        These are those of the shard `like`; without it they are trained, and the recall is measured with queries that
        the embedder makes.
        """
        self.train(preset, like)
        for place in range(len(self.stored), len(self.shards)):
            self.stored.append(self.convert(place))
            self._note()
        search: dict[str, int] = {}
        recall = None
        exact, num_rows = self._exact_shards()
        if like is None:
            paths = [self.folder / VECTORS.format(number) for number in range(self.first_shard, self.number)]
            stored = OpenedInTurn(paths, preset, exact.starts)
            queries = draw_queries(self.folder, self.shards, embedder)
            search, recall = measure(exact, stored, self.folder / WORK / TRAINED, queries, recall_target)
        for place, file in enumerate(self.stored):
            files = {**self.shards[place].files, VECTORS.format(self.first_shard + place): file}
            self.shards[place] = replace(self.shards[place], files=files)
            if preset not in STORAGE_PRESETS:
                note_built(file)
        factory = factory_for(preset, num_rows, exact[0].vectors.d)
        return Storage(preset, factory, search, self.shard_size), recall

    def train(self, preset: str, like: Path | None = None) -> None:
        """Have what the storage of a preset needs, trained once on a sample of all rows or taken from a shard."""
        self._choose(preset)
        if self.trained is None:
            work, (exact, num_rows) = self.folder / WORK, self._exact_shards()
            factory = factory_for(preset, num_rows, exact[0].vectors.d)
            write_vectors(trained_for(factory, exact) if like is None else emptied(like), work / TRAINED, work)
            self.trained = FileEntry.of(work / TRAINED)
            self._note()

    def convert(self, place: int) -> FileEntry:
        """Turn the exact vectors of a shard, counted from the first that is made, into what was trained."""
        number, work = self.first_shard + place, self.folder / WORK
        exact = read_vectors(work_file(self.folder, VECTORS, number), "flat")
        path = self.folder / VECTORS.format(number)
        write_vectors(converted(exact, work / TRAINED), path, work)
        return FileEntry.of(path)

    def _exact_shards(self) -> tuple[OpenedInTurn, int]:
        """Open the exact vectors, and count them."""
        paths = [work_file(self.folder, VECTORS, number) for number in range(self.first_shard, self.number)]
        starts = np.cumsum([0] + [entry.rows for entry in self.shards]).tolist()
        return OpenedInTurn(paths, "flat", starts[:-1]), starts[-1]

    # --- the end ---

    def copy(self, source: Path, manifest: Manifest) -> None:
        """Copy the files of an index; those for viewers may be missing."""
        for name in manifest.files:
            is_viewer = name.startswith("data/")
            if not is_viewer or (source / name).is_file():
                path = self.folder / WORK / Path(name).name if is_viewer else self.folder / name
                shutil.copyfile(source / name, path)
                sync(path)

    def finish(self, manifest: Manifest) -> None:
        """Put the manifest in place, and then the files for viewers."""
        for number in range(self.first_shard, len(manifest.shards)):
            self._refuse(self.folder / VIEWER.format(number))
        for path in self._later_files(len(manifest.shards), SEARCH_FILES):
            path.unlink()  # of a longer build that was dropped
        for name in SEARCH_FOLDERS:
            sync(self.folder / name)
        write_json(self.folder / MANIFEST, manifest.to_json(), self.folder / WORK)
        settle(self.folder)

    def discard(self) -> None:
        """Drop all that was made; a kill meanwhile leaves a build of nothing."""
        self.shards, self.growing, self.complete = [], None, False
        self._note()
        for path in self._later_files(self.first_shard, SEARCH_FILES):
            path.unlink()
        clear(self.folder)
        for folder in (*(self.folder / name for name in (*SEARCH_FOLDERS, VIEWER_FOLDER)), self.folder):
            if folder.is_dir() and not names_in(folder):
                folder.rmdir()

    def _refuse(self, path: Path) -> None:
        if path.exists():
            raise FileExistsError(f"'{path}' is in the way: no manifest names it. Move or remove it, and start again.")

    def _later_files(self, number: int, names: Iterable[str] = SHARD_FILES) -> list[Path]:
        """List the files under names of shards from that number on."""
        paths = [path for name in names for path in self.folder.glob(re.sub(r"{.*}", "*", name))]
        return [path for path in paths if (digits := re.search(r"-(\d+)\.", path.name)) and int(digits[1]) >= number]


def different_settings(settings: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Name the settings that differ."""
    names = sorted(name for name in {*settings, *others} if settings.get(name) != others.get(name))
    if "embedder" in {*names} & {*settings} & {*others} and same_embedder(settings["embedder"], others["embedder"]):
        names.remove("embedder")
    return names


def holds(entry: ShardEntry, number: int, rows: Iterator[Document]) -> bool:
    """Take as many rows of a corpus as the shard of that number has, and tell whether it holds just these."""
    count, digest = 0, hashlib.sha256()
    for row in islice(rows, entry.rows):
        count += 1
        digest.update(document_to_line(row))
    return (count, digest.hexdigest()) == (entry.rows, entry.files[TEXTS.format(number)].sha256)
