"""Building an index of any size: streamed, shard by shard; a build resumes where a kill interrupted it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tttnn.documents import Document
from tttnn.embedding import Embedder, same_embedder
from tttnn.errors import InputError
from tttnn.files import locked
from tttnn.index.build.blocks import embedded_blocks
from tttnn.index.build.passages import split_into_passages
from tttnn.index.build.unfinished import NO_DOCUMENT, UnfinishedIndex, holds
from tttnn.index.build.workspace import Settled, check_vacant, settle
from tttnn.index.integrity import check_file
from tttnn.index.manifest import MANIFEST, TEXTS, VECTORS, EmbedderDescription, Manifest, ShardEntry, read_manifest
from tttnn.index.opening import open_index
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.texts import TextList, document_to_line
from tttnn.index.vectors import check_factory, default_shard_size, exact_index


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
            Index passages of at most this many tokens of the embedder. By default whole documents, of which it reads
            the beginning.
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
    *,
    sources: Sequence[str] = (),
    show_progress_bar: bool = False,
) -> bool:
    """
    Embed and index a corpus of any size, shard by shard.

    A build that was killed at any point resumes when it is started again, after the last documents that were embedded
    (2,048 at a time), and ends with the files of an uninterrupted one. The manifest is written last: before that the
    folder is no index. An index that holds the same corpus already is left as it is.

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
        `FileExistsError`: If the folder holds something else.
        `ValueError`: If there is no document, or an interrupted build had another corpus or is damaged.
        `RuntimeError`: If another process is building into the same folder.
    """
    settings, folder, described = settings or IndexSettings(), Path(folder).resolve(), embedder.describe()
    check_factory(settings.preset, embedder.dimension)
    rows = rows_of(documents, embedder, settings.passage_tokens)
    with locked(folder):
        settle(folder)
        if (folder / MANIFEST).is_file():
            if is_index_of(folder, rows, settings, described):
                return False
            check_vacant(folder)
        build_settings = {
            "passage_tokens": settings.passage_tokens,
            "shard_size": settings.shard_size,
            "embedder": described,
        }
        build = UnfinishedIndex(folder, build_settings, settings.shard_size or default_shard_size(embedder.dimension))
        bar = _bar(documents, embedder, settings.passage_tokens, show_progress_bar)
        with embedder.reported_truncation(), bar:
            build.embed(rows, embedder, batch_size, bar)
        if settings.preset == "flat":
            storage, recall = build.store_exactly(), None
        else:
            storage, recall = build.store(settings.preset, embedder, settings.recall_target)
        made_by = EmbedderDescription.from_json(build.settings["embedder"])
        build.finish(Manifest.of(build.shards, made_by, storage, settings.passage_tokens, sources, recall))
    return True


def add_documents(
    documents: Iterable[Document],
    embedder: Embedder,
    folder: str | Path,
    batch_size: int | None = None,
    *,
    sources: Sequence[str] = (),
    show_progress_bar: bool = False,
    trust_index: bool = False,
) -> int:
    """
    Append documents to an index on disk, as new shards; the others stay as they are.

    A call that was killed resumes when it is started again with the same documents. A call that had
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
        trust_index (`bool`, *optional*, defaults to `False`):
            As `open_index` takes it, for an index of a Faiss factory that was built elsewhere.

    Returns:
        `int`: rows that were added; 0 if they were there.

    Raises:
        `FileNotFoundError`: If there is no index.
        `FileExistsError`: If files that the manifest does not name have the names of new shards.
        `ValueError`: If there is no document, the embedder is another, or an interrupted call had other documents.
        `RuntimeError`: If another process is building into the same folder.
    """
    folder = Path(folder).resolve()
    read_manifest(folder)
    with locked(folder):
        settled, old = settle(folder), read_manifest(folder)
        embedder.check(old.embedder.to_json())
        rows, first = rows_of(documents, embedder, old.passage_tokens), len(old.shards)
        if settled is not None and settled.is_addition:
            return _rows_of_settled(folder, old, settled, rows)
        build_settings = {"added_to": old.corpus_digest, "passage_tokens": old.passage_tokens}
        build = UnfinishedIndex(folder, build_settings, old.storage.shard_size, first)
        bar = _bar(documents, embedder, old.passage_tokens, show_progress_bar)
        with embedder.reported_truncation(), bar:
            build.embed(rows, embedder, batch_size, bar)
        if _is_repeated(build.shards, old.shards):  # for example after a kill at the very end
            build.discard()
            return 0
        if old.storage.preset == "flat":
            build.store_exactly()
        else:
            open_index(folder, shards=[0], trust_index=trust_index)  # which verifies the file
            build.store(old.storage.preset, embedder, like=folder / VECTORS.format(0))
        shards, named = [*old.shards, *build.shards], [*old.sources, *sources]
        build.finish(Manifest.of(shards, old.embedder, old.storage, old.passage_tokens, named, old.recall))
    return sum(entry.rows for entry in build.shards)


def index_in_memory(
    documents: Iterable[Document],
    embedder: Embedder,
    passage_tokens: int | None = None,
    *,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
) -> DocumentIndex:
    """
    Embed and index a few thousand documents in memory.

    Args:
        documents (`Iterable[Document]`):
            The corpus.
        embedder (`Embedder`):
            Makes the vectors.
        passage_tokens (`int`, *optional*):
            Index passages of at most this many tokens. By default whole documents.
        batch_size (`int`, *optional*):
            Texts in one forward pass of the embedder. By default `Embedder.default_batch_size`.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the embedded documents on a bar.

    Returns:
        `DocumentIndex`: one exact shard.

    Raises:
        `ValueError`: If there is no document, or `batch_size` is not positive.
    """
    described, vectors, rows = embedder.describe(), exact_index(embedder.dimension), TextList()
    digest = hashlib.sha256(json.dumps(described).encode())
    bar = _bar(documents, embedder, passage_tokens, show_progress_bar)
    with embedder.reported_truncation(), bar:
        corpus = rows_of(documents, embedder, passage_tokens)
        for block, embedded in embedded_blocks(corpus, embedder, batch_size, progress=bar.update):
            vectors.add(embedded)
            rows += block
    if not rows:
        raise InputError(NO_DOCUMENT)
    for row in rows:
        digest.update(document_to_line(row))
    return DocumentIndex([Shard(vectors, rows)], described, digest.hexdigest(), passage_tokens=passage_tokens)


def rows_of(documents: Iterable[Document], embedder: Embedder, passage_tokens: int | None) -> Iterator[Document]:
    """Give the rows of an index of documents: these, or their passages."""
    return iter(documents) if passage_tokens is None else split_into_passages(documents, embedder, passage_tokens)


def _bar(documents: Iterable[Document], embedder: Embedder, passage_tokens: int | None, shown: bool) -> tqdm:
    """Make the bar of the rows; their number is known if the documents have one and can be read twice."""
    total = None
    if shown and isinstance(documents, Sized):
        total = len(documents)
        if passage_tokens is not None:
            total = sum(1 for _ in rows_of(documents, embedder, passage_tokens))
    return tqdm(desc="Embedding", unit="row", total=total, disable=not shown)


def is_index_of(folder: Path, rows: Iterator[Document], settings: IndexSettings, described: dict[str, Any]) -> bool:
    """Whether a folder holds the index that a build would make; the corpus is read, but nothing is embedded."""
    manifest = read_manifest(folder)
    storage, recall = manifest.storage, manifest.recall
    target = settings.recall_target if recall is None else recall.target
    size = settings.shard_size and storage.shard_size
    built = IndexSettings(storage.preset, size, manifest.passage_tokens, target)
    if built != settings or not same_embedder(described, manifest.embedder.to_json()):
        return False
    if not all(holds(entry, number, rows) for number, entry in enumerate(manifest.shards)) or any(rows):
        return False
    try:
        for name, file in manifest.files.items():
            check_file(folder / name, file)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"'{folder}' is the index of this corpus, but not whole: {error} To rebuild it, remove '{folder}'."
        ) from error
    return True


def _rows_of_settled(folder: Path, manifest: Manifest, settled: Settled, rows: Iterator[Document]) -> int:
    """Give the number of rows that a call had added before it was interrupted, if it had the same documents."""
    new = [*enumerate(manifest.shards)][settled.first_shard :]
    num_rows = sum(entry.rows for _, entry in new)
    if not all(holds(entry, number, rows) for number, entry in new) or any(rows):
        raise InputError(
            f"An interrupted call had added {num_rows} rows to '{folder}', which are in the index now, and these are "
            "other or more documents. Start again with those that are not in the index yet."
        )
    return num_rows


def _is_repeated(new: list[ShardEntry], shards: list[ShardEntry]) -> bool:
    """Whether the last shards of an index hold the texts of new ones already, so that these were the last added."""
    digests = [entry.files[TEXTS.format(number)].sha256 for number, entry in enumerate([*shards, *new])]
    return digests[-2 * len(new) : -len(new)] == digests[-len(new) :]
