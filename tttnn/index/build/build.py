"""Building an index of any size: streamed, shard by shard, going on where it was after a kill."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tttnn.documents import Document
from tttnn.embedding import Embedder, same_embedder
from tttnn.errors import InputError
from tttnn.files import locked, write_json
from tttnn.index.build.compress import choose_storage, convert_shards
from tttnn.index.build.passages import split_into_passages
from tttnn.index.build.resume import UnfinishedBuild, embedded_windows, holds, no_document
from tttnn.index.build.workspace import check_vacant, intact, move_index, unfinished_folder
from tttnn.index.manifest import (
    MANIFEST,
    TEXTS,
    VECTORS,
    EmbedderDescription,
    Manifest,
    ShardEntry,
    Storage,
    check_file,
    read_manifest,
)
from tttnn.index.search import DocumentIndex, open_index
from tttnn.index.shard import Shard
from tttnn.index.texts import document_to_line
from tttnn.index.vectors import check_factory, default_shard_size, import_faiss


def index_in_memory(
    documents: Iterable[Document],
    embedder: Embedder,
    passage_tokens: int | None = None,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
) -> DocumentIndex:
    """
    Embed and index a few thousand documents.

    Args:
        documents (`Iterable[Document]`):
            The corpus.
        embedder (`Embedder`):
            Makes the vectors.
        passage_tokens (`int`, *optional*):
            Index passages of at most so many tokens. By default whole documents.
        batch_size (`int`, *optional*):
            Texts in one forward pass of the embedder. By default `Embedder.default_batch_size`.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the embedded documents on a bar.

    Returns:
        `DocumentIndex`: one exact shard.

    Raises:
        `ValueError`: If there is no document, or `batch_size` is not positive.
    """
    described, vectors, rows = embedder.describe(), import_faiss().IndexFlatL2(embedder.dimension), []
    digest = hashlib.sha256(json.dumps(described).encode())
    with tqdm(desc="Embedding", unit="document", disable=not show_progress_bar) as progress:
        for window, found in embedded_windows(_rows(documents, embedder, passage_tokens), embedder, batch_size):
            vectors.add(found)
            rows += window
            progress.update(len(window))
    if not rows:
        raise no_document()
    for row in rows:
        digest.update(document_to_line(row))
    return DocumentIndex([Shard(vectors, rows)], described, digest.hexdigest(), passage_tokens=passage_tokens)


@dataclass(frozen=True)
class IndexSettings:
    """
    What an index is like, beside its corpus and its embedder.

    Args:
        preset (`str`, *optional*, defaults to `"flat"`):
            How vectors are stored: `"flat"` (exact), `"ivf"`, `"scale"`, or a name of Faiss's index factory.
        shard_size (`int`, *optional*):
            Rows in a shard; memory holds the vectors of one. By default as many as take 512 MiB.
        passage_tokens (`int`, *optional*):
            Index passages of at most so many tokens of the embedder. By default whole documents, of which it reads the
            beginning.
        recall_target (`float`, *optional*, defaults to `0.95`):
            Of the 20 nearest rows, the share that a search should find; how thoroughly it searches is chosen so. An
            exact index finds all.

    Raises:
        `ValueError`: If a value is out of range.
    """

    preset: str = "flat"
    shard_size: int | None = None
    passage_tokens: int | None = None
    recall_target: float = 0.95

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.shard_size < 1:
            raise InputError(f"`shard_size` is {self.shard_size}. Pass 1 or more.")
        if not 0 < self.recall_target <= 1:
            raise InputError(f"`recall_target` is {self.recall_target}. Pass a share above 0 and up to 1.")


def build_index(
    documents: Iterable[Document],
    embedder: Embedder,
    folder: str | Path,
    settings: IndexSettings | None = None,
    batch_size: int | None = None,
    sources: Sequence[str] = (),
    show_progress_bar: bool = False,
) -> bool:
    """
    Embed and index a corpus of any size, shard by shard.

    What is finished stands in the folder `NAME.unfinished` beside: killed at any point and started again, the build
    goes on after the last documents that were embedded (2,048 at a time), and ends with the files of an uninterrupted
    one. An index that holds the same corpus already is left as it is.

    Args:
        documents (`Iterable[Document]`):
            The corpus, the same and in the same order at every start.
        embedder (`Embedder`):
            Makes the vectors.
        folder (`str` or `Path`):
            New, empty, or an index of the same corpus.
        settings (`IndexSettings`, *optional*):
            How vectors are stored. By default exactly.
        batch_size (`int`, *optional*):
            Texts in one forward pass of the embedder. By default `Embedder.default_batch_size`.
        sources (`Sequence[str]`, *optional*):
            What the corpus is called, for the index card.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the embedded documents on a bar.

    Returns:
        `bool`: whether anything was built.

    Raises:
        `FileExistsError`: If the folder holds something else, or the one beside is somebody's own.
        `ValueError`: If there is no document, or an interrupted build had another corpus or is damaged.
        `RuntimeError`: If another process is building into the same folder.
    """
    settings, folder, described = settings or IndexSettings(), Path(folder).resolve(), embedder.describe()
    check_factory(settings.preset, embedder.dimension)
    rows = _rows(documents, embedder, settings.passage_tokens)
    with locked(folder):
        unfinished = unfinished_folder(folder)
        if _is_done(folder, unfinished, rows, settings, described):
            return False
        check_vacant(folder)
        size = settings.shard_size or default_shard_size(embedder.dimension)
        kept = {"passage_tokens": settings.passage_tokens, "shard_size": settings.shard_size, "embedder": described}
        build = UnfinishedBuild(unfinished, kept, size)
        choose_storage(unfinished, settings.preset, settings.recall_target)
        shards = build.add_shards(rows, embedder, batch_size, show_progress_bar)
        storage, recall = Storage("flat", "Flat", {}, build.shard_size), None
        if settings.preset != "flat":
            chosen = settings.preset, settings.recall_target
            storage, recall = convert_shards(unfinished, shards, build.shard_size, embedder, *chosen)
        made_by = EmbedderDescription.from_json(build.settings["embedder"])
        manifest = Manifest.of(shards, made_by, storage, settings.passage_tokens, sources, recall)
        write_json(unfinished / MANIFEST, manifest.to_json())
        move_index(unfinished, folder)
    return True


def add_documents(
    documents: Iterable[Document],
    embedder: Embedder,
    folder: str | Path,
    batch_size: int | None = None,
    sources: Sequence[str] = (),
    show_progress_bar: bool = False,
) -> int:
    """
    Append documents to an index on disk, as new shards; the others stay as they are.

    Killed and started again with the same documents, it goes on after the last that were embedded. A call that had
    ended may be given again too: documents that are the last of the index already are embedded, found to be the same,
    and not added a second time. Only all of them together are known again; part of them, or all and more, are added.

    Args:
        documents (`Iterable[Document]`):
            What is new; cut into passages if the index is one of passages.
        embedder (`Embedder`):
            The one that built the index.
        folder (`str` or `Path`):
            The index.
        batch_size (`int`, *optional*):
            Texts in one forward pass of the embedder. By default `Embedder.default_batch_size`.
        sources (`Sequence[str]`, *optional*):
            What they are called, for the index card.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the embedded documents on a bar.

    Returns:
        `int`: rows that were added; 0 if they were there.

    Raises:
        `FileNotFoundError`: If there is no index.
        `FileExistsError`: If the folder `NAME.unfinished` beside it is somebody's own.
        `ValueError`: If there is no document, the embedder is another, or an interrupted call had other documents.
        `RuntimeError`: If another process is building into the same folder.
    """
    folder = Path(folder).resolve()
    read_manifest(folder)
    with locked(folder):
        manifest = read_manifest(folder)
        embedder.check(manifest.embedder.to_json())
        rows = _rows(documents, embedder, manifest.passage_tokens)
        unfinished, first = unfinished_folder(folder), len(manifest.shards)
        if (unfinished / MANIFEST).is_file():  # all is made, and a part perhaps moved
            return _end_adding(unfinished, folder, rows, first)
        kept = {"added_to": manifest.corpus_digest, "passage_tokens": manifest.passage_tokens}
        build = UnfinishedBuild(unfinished, kept, manifest.storage.shard_size, first)
        new = build.add_shards(rows, embedder, batch_size, show_progress_bar)
        if _is_repeated(new, manifest.shards):  # after a kill at the very end, say
            build.remove()
            return 0
        if manifest.storage.preset != "flat":
            _convert_added(folder, unfinished, new, embedder, manifest.storage, first)
        write_json(unfinished / MANIFEST, _with_added(manifest, new, sources).to_json())
        move_index(unfinished, folder)
    return sum(entry.rows for entry in new)


def _with_added(manifest: Manifest, new: list[ShardEntry], sources: Sequence[str]) -> Manifest:
    shards, named = [*manifest.shards, *new], [*manifest.sources, *sources]
    tokens, recall = manifest.passage_tokens, manifest.recall
    return Manifest.of(shards, manifest.embedder, manifest.storage, tokens, named, recall)


def _convert_added(
    folder: Path, unfinished: Path, shards: list[ShardEntry], embedder: Embedder, storage: Storage, first_shard: int
) -> None:
    open_index(folder, shards=[0])  # which verifies the file
    size, preset, like = storage.shard_size, storage.preset, folder / VECTORS.format(0)
    convert_shards(unfinished, shards, size, embedder, preset, like=like, first_shard=first_shard)


def _rows(documents: Iterable[Document], embedder: Embedder, passage_tokens: int | None) -> Iterator[Document]:
    return iter(documents) if passage_tokens is None else split_into_passages(documents, embedder, passage_tokens)


def _is_done(
    folder: Path, unfinished: Path, rows: Iterator[Document], settings: IndexSettings, described: dict[str, Any]
) -> bool:
    """Finish a build that lacks nothing but its move, and tell whether the folder holds the index now."""
    if (unfinished / MANIFEST).is_file():
        move_index(unfinished, folder)
    if not (folder / MANIFEST).is_file() or not _is_index_of(folder, rows, settings, described):
        return False
    if unfinished.is_dir() and not any(unfinished.iterdir()):  # left by a kill at the very end
        unfinished.rmdir()
    return True


def _is_index_of(folder: Path, rows: Iterator[Document], settings: IndexSettings, described: dict[str, Any]) -> bool:
    """Whether a folder holds the index that a build would make; the corpus is read, but nothing is embedded."""
    manifest = read_manifest(folder)
    storage, recall = manifest.storage, manifest.recall
    target = settings.recall_target if recall is None else recall.target
    size = settings.shard_size and storage.shard_size
    found = IndexSettings(storage.preset, size, manifest.passage_tokens, target)
    if found != settings or not same_embedder(described, manifest.embedder.to_json()):
        return False
    if not all(holds(entry, number, rows) for number, entry in enumerate(manifest.shards)) or any(rows):
        return False
    try:
        for name, file in manifest.files.items():
            check_file(folder / name, file)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"'{folder}' is the index of this corpus, but not whole: {error} To build it anew, remove '{folder}'."
        ) from error
    return True


def _end_adding(unfinished: Path, folder: Path, rows: Iterator[Document], first_shard: int) -> int:
    """Move what an interrupted call had made, and give its number of rows if it had the same documents."""
    with intact(unfinished):
        new = list(enumerate(read_manifest(unfinished).shards))[first_shard:]
    move_index(unfinished, folder)
    num_rows = sum(entry.rows for _, entry in new)
    if not all(holds(entry, number, rows) for number, entry in new):
        raise InputError(
            f"An interrupted call had added {num_rows} rows of other documents to '{folder}', and its end is done "
            "now. Start again to add these."
        )
    if any(rows):
        raise InputError(
            f"An interrupted call had added the first {num_rows} rows of these documents to '{folder}', and its end "
            "is done now. Start with the documents that come after, for the first would be added again."
        )
    return num_rows


def _is_repeated(new: list[ShardEntry], shards: list[ShardEntry]) -> bool:
    """Whether the last shards of an index hold the texts of new ones already, so that these were the last added."""
    digests = [entry.files[TEXTS.format(number)].sha256 for number, entry in enumerate([*shards, *new])]
    return digests[-2 * len(new) : -len(new)] == digests[-len(new) :]
