"""An index written to a folder: one in memory as it is, one on disk by copying its files."""

from pathlib import Path

from tttnn.files import locked
from tttnn.index.build.unfinished import UnfinishedIndex
from tttnn.index.build.workspace import settle
from tttnn.index.integrity import check_file
from tttnn.index.manifest import EmbedderDescription, Manifest, read_manifest
from tttnn.index.search import DocumentIndex
from tttnn.index.vectors import default_shard_size


def write_index(index: DocumentIndex, folder: str | Path) -> Path:
    """
    Write an index, with all its shards and local texts, to a folder.

    Args:
        index (`DocumentIndex`):
            In memory, or on disk.
        folder (`str` or `Path`):
            New or empty; it is no index before all is written.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: If the folder is there and not empty.
        `ValueError`: If it holds an interrupted build of something else, or the index is only a part of one.
        `RuntimeError`: If another process is writing there.
        `FileNotFoundError`: If files of an index on disk are missing, for example those of shards that were not
            fetched.
    """
    index.check_whole()
    folder = Path(folder).resolve()
    if index.folder is not None:
        manifest = read_manifest(index.folder)
        for name, entry in manifest.files.items():
            if not name.startswith("data/") or (index.folder / name).is_file():  # viewers' files are not fetched
                check_file(index.folder / name, entry)
    build_settings = {"saved": index.digest, "passage_tokens": index.passage_tokens}
    with locked(folder):
        settle(folder)
        build = UnfinishedIndex(folder, build_settings, default_shard_size(index.shards[0].vectors.d))
        if index.folder is not None:
            build.copy(index.folder, manifest)
        else:
            for shard in index.shards[len(build.shards) :]:
                documents = (shard.documents.fetch([row])[0] for row in range(len(shard)))
                build.write_shard(documents, shard.vectors, "The index in memory")
            described = EmbedderDescription.from_json(index.embedder)
            manifest = Manifest.of(build.shards, described, build.store_exactly(), index.passage_tokens)
        build.finish(manifest)
    return folder
