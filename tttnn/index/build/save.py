"""An index written to a folder: one in memory as it is, one on disk by copying its files."""

import shutil
from pathlib import Path

from tttnn.files import locked, write_json
from tttnn.index.build.workspace import FOLDERS, STATE, check_own, check_vacant, move_index, remove_build
from tttnn.index.build.writers import ROWS_PER_COPY, ShardWriter
from tttnn.index.manifest import (
    MANIFEST,
    EmbedderDescription,
    Manifest,
    ShardEntry,
    Storage,
    check_file,
    read_manifest,
)
from tttnn.index.search import DocumentIndex
from tttnn.index.vectors import default_shard_size, import_faiss


def write_index(index: DocumentIndex, folder: str | Path) -> Path:
    """
    Write an index to a folder: one in memory as it is, one on disk by copying its files.

    Args:
        index (`DocumentIndex`):
            With all its shards and local texts.
        folder (`str` or `Path`):
            New or empty; written beside under another name first, so that it never holds half an index.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: If the folder is there and not empty, or `NAME.saving` beside it is somebody's own.
        `RuntimeError`: If another process is writing there.
        `FileNotFoundError`: If files of an index on disk are missing, those of shards that were not fetched say.
    """
    folder = Path(folder).resolve()
    with locked(folder):
        check_vacant(folder)
        _write(index, folder)
    return folder


def _write(index: DocumentIndex, folder: Path) -> None:
    unfinished = folder.with_name(folder.name + ".saving")  # not that of a build, which may be gone on with
    check_own(unfinished)
    remove_build(unfinished)  # what a kill left
    unfinished.mkdir(exist_ok=True)
    write_json(unfinished / STATE, {})
    for name in FOLDERS:
        (unfinished / name).mkdir(exist_ok=True)
    if index.folder is not None:
        manifest = read_manifest(index.folder)
        for name, entry in manifest.files.items():
            if not name.startswith("data/") or (index.folder / name).is_file():  # the viewer's files are not fetched
                check_file(index.folder / name, entry)
                shutil.copyfile(index.folder / name, unfinished / name)
    else:
        shards = [_write_shard(index, number, unfinished) for number in range(len(index.shards))]
        storage = Storage("flat", "Flat", {}, default_shard_size(index.shards[0].vectors.d))
        manifest = Manifest.of(shards, EmbedderDescription.from_json(index.embedder), storage, index.passage_tokens)
    write_json(unfinished / MANIFEST, manifest.to_json())
    move_index(unfinished, folder)


def _write_shard(index: DocumentIndex, number: int, folder: Path) -> ShardEntry:
    shard, vectors = index.shards[number], import_faiss().IndexFlatL2(index.shards[number].vectors.d)
    writer = ShardWriter(folder, number, index.passage_tokens is not None)
    writer.add(shard.documents[row] for row in range(len(shard)))
    for first in range(0, len(shard), ROWS_PER_COPY):
        vectors.add(shard.vectors.reconstruct_n(first, min(ROWS_PER_COPY, len(shard) - first)))
    return writer.finish(vectors)
