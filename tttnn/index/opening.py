"""Open the folder of an index: its files are checked and mapped, not read into memory."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.errors import InputError
from tttnn.index.integrity import check_file, check_trust
from tttnn.index.manifest import (
    MANIFEST,
    OFFSETS,
    TEXTS,
    VECTORS,
    VIEWER,
    Manifest,
    ShardEntry,
    manifest_bytes,
    parse_manifest,
)
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.texts import TextSource, TextStore
from tttnn.index.vectors import claimed_shape, read_vectors


def open_index(
    folder: str | Path,
    *,
    verify: bool = False,
    shards: Sequence[int] | None = None,
    open_texts: Callable[[int, ShardEntry], TextSource] | None = None,
    trust_index: bool = False,
) -> DocumentIndex:
    """
    Open an index without reading its vectors or texts into memory.

    Args:
        folder (`str` or `Path`):
            What `build_index` wrote.
        verify (`bool`, *optional*, defaults to `False`):
            Whether to hash every file even where an earlier open on this machine has found it whole.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards to open; the others need not be there. By default all.
        open_texts (`Callable`, *optional*):
            Opens the texts of a shard, given its number and its entry in the manifest, where they are not in the
            folder.
        trust_index (`bool`, *optional*, defaults to `False`):
            Whether to let Faiss read files of kinds whose sizes are not checked beforehand. The presets `flat`, `ivf`
            and `scale` are checked; a file of another factory can crash the process, or take all memory, if somebody
            forged it. Files that were built on this machine are trusted in any case.

    Returns:
        `DocumentIndex`: memory-mapped.

    Raises:
        `FileNotFoundError`: If the folder has no manifest, or a file that the manifest names is missing.
        `ValueError`: If the manifest is of another format, a file is not as the manifest says, there is no such shard,
            or the index is not of a preset and not trusted.
    """
    folder = Path(folder)
    content = manifest_bytes(folder)  # once, because an `add` may put another in its place
    manifest = parse_manifest(content, folder / MANIFEST)
    numbers = manifest.chosen_shards(shards)
    if not trust_index:
        check_trust(folder, manifest, numbers)
    starts = np.cumsum([0] + [entry.rows for entry in manifest.shards]).tolist()
    opened = []
    for number in numbers:
        vectors, entry = _open_vectors(folder, manifest, number, verify), manifest.shards[number]
        check_file(folder / OFFSETS.format(number), entry.files[OFFSETS.format(number)], verify)
        if open_texts is None:
            path = folder / TEXTS.format(number)
            check_file(path, entry.files[TEXTS.format(number)], verify)
            source: TextSource = TextStore(path, entry.rows)
        else:
            source = open_texts(number, entry)
        opened.append(Shard(vectors, source, starts[number]))
    for shard in opened[1:]:
        if not shard.is_like(opened[0]):  # the lists to look into are found once for all
            raise InputError(
                f"The shards of '{folder}' that begin at rows {opened[0].start} and {shard.start} are stored in "
                "different ways. Fetch or rebuild the index."
            )
    digest = index_digest(content, None if shards is None else numbers)
    embedder, search = manifest.embedder.to_json(), manifest.storage.search
    return DocumentIndex(opened, embedder, digest, search, folder, manifest.passage_tokens)


@dataclass(frozen=True)
class IndexVersion:
    """
    Which index this is, by its manifest, and which of its shards are meant.

    Args:
        content (`bytes`):
            The manifest, as it is in the file.
        manifest (`Manifest`):
            The manifest.
        numbers (`list[int]`):
            Of the shards.
        is_whole (`bool`):
            Whether these are all that there are, without having been asked for one by one.
    """

    content: bytes
    manifest: Manifest
    numbers: list[int]
    is_whole: bool

    @property
    def digest(self) -> str:
        """What `open_index` gives these shards."""
        return index_digest(self.content, None if self.is_whole else self.numbers)

    def digest_of(self, numbers: list[int]) -> str:
        """
        Give the digest of some of the shards.

        Args:
            numbers (`list[int]`):
                In their order.

        Returns:
            `str`: what `open_index` gives them.
        """
        return index_digest(self.content, numbers)


def read_version(folder: str | Path, shards: Sequence[int] | None = None) -> IndexVersion:
    """
    Read which index is in a folder; its shards need not be there.

    Args:
        folder (`str` or `Path`):
            With the manifest.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards that are meant. By default all.

    Returns:
        `IndexVersion`: with the digest.

    Raises:
        `FileNotFoundError`: If the folder has no manifest.
        `ValueError`: If the manifest is damaged or of another format, or there is no such shard.
    """
    content = manifest_bytes(folder)
    manifest = parse_manifest(content, Path(folder) / MANIFEST)
    return IndexVersion(content, manifest, manifest.chosen_shards(shards), shards is None)


def index_digest(content: bytes, shards: Sequence[int] | None) -> str:
    """Tell an index from any other by the bytes of its manifest, and by the shards that are open if not all are."""
    return hashlib.sha256(content + (b"" if shards is None else str([*shards]).encode())).hexdigest()


def _open_vectors(folder: Path, manifest: Manifest, number: int, verify: bool) -> Any:  # noqa: ANN401
    entry, path = manifest.shards[number], folder / VECTORS.format(number)
    check_file(path, entry.files[VECTORS.format(number)], verify)
    # the viewer's file is not opened here, and may be left out
    if verify and (viewer := folder / VIEWER.format(number)).is_file():
        check_file(viewer, entry.files[VIEWER.format(number)], verify)
    rows, dimension = claimed_shape(path)
    if (rows, dimension) != (entry.rows, manifest.embedder.dimension):
        raise InputError(
            f"Shard {number} of '{folder}' should hold {entry.rows} rows of dimension {manifest.embedder.dimension}, "
            f"but has {rows} vectors of dimension {dimension}. Fetch or rebuild the index."
        )
    return read_vectors(path, manifest.storage.preset)
