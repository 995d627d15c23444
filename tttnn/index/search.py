"""Faiss indexes of document vectors: described by a manifest, opened without a copy, searched as one."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.index.hub.remote_texts import RemoteFile, RemoteTexts, fetch_remote
from tttnn.index.manifest import (
    MANIFEST,
    OFFSETS,
    SHARD_FILES,
    TEXTS,
    VECTORS,
    Manifest,
    check_file,
    manifest_bytes,
    parse_manifest,
)
from tttnn.index.shard import Shard, blocks, nearest
from tttnn.index.texts import TextStore
from tttnn.index.vectors import import_faiss, read_vectors


class DocumentIndex:
    """
    Shards of document vectors, searched as one.

    Args:
        shards (`Sequence[Shard]`):
            In the order of their rows; those between them may be closed.
        embedder (`dict[str, Any]`):
            What `Embedder.describe` said of the embedder that made the vectors.
        digest (`str`):
            What tells the index from another: of its manifest and the open shards, or of its texts if it is in memory.
        search (`dict[str, int]`, *optional*):
            `nprobe`, the inverted lists that are looked into, and `k_factor`, the candidates that are ranked again for
            each row that is asked for; each where the vectors are stored so.
        folder (`Path`, *optional*):
            Where its files are; none if it is in memory.
        passage_tokens (`int`, *optional*):
            Most tokens of a passage, where rows are passages.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        embedder: dict[str, Any],
        digest: str,
        search: dict[str, int] | None = None,
        folder: Path | None = None,
        passage_tokens: int | None = None,
    ) -> None:
        self.shards = shards
        self.embedder = embedder
        self.digest = digest
        self.folder = folder
        self.passage_tokens = passage_tokens
        self.set_search(search or {})

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def set_search(self, search: dict[str, int]) -> None:
        """
        Set how thoroughly it is searched.

        Args:
            search (`dict[str, int]`):
                `nprobe` and `k_factor`.
        """
        self.nprobe, self.k_factor = search.get("nprobe"), search.get("k_factor", 1)

    def shard_of(self, row: int) -> tuple[Shard, int]:
        """
        Find the shard of a row.

        Args:
            row (`int`):
                A row of the whole index.

        Returns:
            `tuple[Shard, int]`: the shard, and the row's place in it.

        Raises:
            `IndexError`: If no open shard has the row.
        """
        for shard in self.shards[max(bisect_right(self.shards, row, key=lambda shard: shard.start) - 1, 0) :][:1]:
            if 0 <= row - shard.start < len(shard):
                return shard, row - shard.start
        ranges = ", ".join(f"{shard.start} to {shard.start + len(shard) - 1}" for shard in self.shards)
        raise IndexError(f"Row {row} was asked for, but the index holds rows {ranges}.")

    def documents(self, rows: Sequence[int]) -> list[Document]:
        """
        Fetch the documents of rows, those that stay on the Hub many at a time.

        Args:
            rows (`Sequence[int]`):
                Rows of the whole index.

        Returns:
            `list[Document]`: in the order of `rows`.

        Raises:
            `IndexError`: If no open shard has a row.
            `ConnectionError`: If the texts are on the Hub, and it does not serve.
            `ValueError`: If a text is damaged.
        """
        found: dict[int, Document] = {}
        remote: dict[int, tuple[RemoteTexts, int]] = {}
        for row in dict.fromkeys(rows):
            shard, place = self.shard_of(row)
            if isinstance(shard.documents, RemoteTexts):
                remote[row] = shard.documents, place
            else:
                found[row] = shard.documents[place]
        found.update(zip(remote, fetch_remote([*remote.values()]), strict=True))
        return [found[row] for row in rows]

    def search(self, queries: np.ndarray, top_k: int) -> list[list[tuple[float, int]]]:
        """
        Find the nearest rows of each query.

        Args:
            queries (`np.ndarray`):
                float32 of shape `(n, dimension)`.
            top_k (`int`):
                Rows wanted for each query.

        Returns:
            `list[list[tuple[float, int]]]`: for each query at most `top_k` pairs of squared L2 distance and row of the
            whole index, nearest first, equal distances by row.
        """
        return self.search_each(queries, top_k, [self.k_factor])[0]

    def search_each(
        self, queries: np.ndarray, top_k: int, k_factors: Sequence[int]
    ) -> list[list[list[tuple[float, int]]]]:
        """
        Search with each of several `k_factor`; candidates are looked for once.

        Args:
            queries (`np.ndarray`):
                As `search` takes them.
            top_k (`int`):
                Rows wanted for each query.
            k_factors (`Sequence[int]`):
                Each as `set_search` takes it.

        Returns:
            `list[list[list[tuple[float, int]]]]`: what `search` would give, for each.
        """
        if len(queries) == 0:
            return [[] for _ in k_factors]
        distances, rows = self._candidates(queries, top_k * max(k_factors))
        if self.shards[0].exact is not None:
            distances = np.full(rows.shape, np.inf, np.float32)
            for shard in self.shards:
                shard.measure(queries, rows, distances)
        results = []
        for depth in (top_k * k_factor for k_factor in k_factors):
            near, found = nearest(distances[:, :depth], rows[:, :depth], top_k)
            pairs = zip(near.tolist(), found.tolist(), strict=True)
            results.append([[pair for pair in zip(*each, strict=True) if pair[1] >= 0] for each in pairs])
        return results

    def _candidates(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Find rows of each query, nearest first, padded with the row -1; each shard is read once."""
        parts = blocks(np.ascontiguousarray(queries, np.float32))
        # all shards are divided by the same centroids: the lists to look into are found once
        lists = [self.shards[0].near_lists(part, self.nprobe) for part in parts]
        distances, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for shard in self.shards:
            asked = min(depth, len(shard)), self.nprobe
            selector = self._selector(shard)
            found = [shard.search(part, *asked, near, selector) for part, near in zip(parts, lists, strict=True)]
            near, places = (np.concatenate(each) for each in zip(*found, strict=True))
            if places.max() >= len(shard):
                raise InputError(
                    f"The shard that begins at row {shard.start} has {len(shard)} rows, but names row {places.max()} "
                    "of its own: it is damaged. Fetch or build the index anew."
                )
            # an inverted-file index pads with -1 where its probed lists hold too few rows
            places[places >= 0] += shard.start
            distances, rows = nearest(np.hstack([distances, near]), np.hstack([rows, places]), depth)
        return distances, rows

    def _selector(self, shard: Shard) -> Any:  # noqa: ANN401
        """Give a Faiss selector of places in a shard, or None for all."""
        return None


def open_index(
    folder: str | Path,
    verify: bool = False,
    shards: Sequence[int] | None = None,
    remote: Mapping[str, RemoteFile] | None = None,
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
        remote (`Mapping[str, RemoteFile]`, *optional*):
            The files of the texts, by name, where they stay on the Hub. By default they are local.

    Returns:
        `DocumentIndex`: memory-mapped.

    Raises:
        `FileNotFoundError`: If the folder has no manifest, or a file that the manifest names is missing.
        `ValueError`: If the manifest is of another format, a file is not as the manifest says, or there is no such
            shard.
    """
    folder = Path(folder)
    content = manifest_bytes(folder)  # once, for an `add` may put another in its place
    manifest = parse_manifest(content, folder / MANIFEST)
    numbers = manifest.chosen_shards(shards)
    opened, start = [], 0
    for number, entry in enumerate(manifest.shards):
        if number in numbers:
            opened.append(_open_shard(folder, manifest, number, start, verify, remote))
        start += entry.rows
    _check_alike(opened, folder)
    digest = hashlib.sha256(content + (b"" if shards is None else str(numbers).encode())).hexdigest()
    embedder, search = manifest.embedder.to_json(), manifest.storage.search
    return DocumentIndex(opened, embedder, digest, search, folder, manifest.passage_tokens)


def _check_alike(shards: list[Shard], folder: Path) -> None:
    """Make sure that shards are stored and divided alike: the lists to look into are found once for all."""
    first = shards[0]
    for shard in shards[1:]:
        alike = type(shard.lists) is type(first.lists) and (shard.exact is None) == (first.exact is None)
        if alike and isinstance(first.lists, import_faiss().IndexIVF):
            alike = shard.lists.nlist == first.lists.nlist
            # of their centroids three are looked at, for opening must not read them all
            for place in (0, first.lists.nlist // 2, first.lists.nlist - 1) if alike else ():
                centroids = [each.lists.quantizer.reconstruct(place) for each in (first, shard)]
                alike = alike and np.array_equal(*centroids)
        if not alike:
            raise InputError(
                f"The shards of '{folder}' that begin at rows {first.start} and {shard.start} are stored in different "
                "ways. Fetch or build the index anew."
            )


def _open_shard(
    folder: Path,
    manifest: Manifest,
    number: int,
    start: int,
    verify: bool,
    remote: Mapping[str, RemoteFile] | None,
) -> Shard:
    entry, vectors_path = manifest.shards[number], folder / VECTORS.format(number)
    offsets, texts = folder / OFFSETS.format(number), folder / TEXTS.format(number)
    for name in (pattern.format(number) for pattern in SHARD_FILES):
        if name == TEXTS.format(number) and remote is not None:
            continue
        # the files for viewers are not opened here, and may be left out
        if folder / name in (vectors_path, offsets, texts) or verify and (folder / name).is_file():
            check_file(folder / name, entry.files[name], verify)
    vectors = read_vectors(vectors_path, manifest.storage.preset)
    if (vectors.ntotal, vectors.d) != (entry.rows, manifest.embedder.dimension):
        raise InputError(
            f"Shard {number} of '{folder}' should hold {entry.rows} rows of dimension "
            f"{manifest.embedder.dimension}, but has {vectors.ntotal} vectors of dimension {vectors.d}. "
            "Fetch or build the index anew."
        )
    if remote is None:
        return Shard(vectors, TextStore(texts, entry.rows), start)
    name = TEXTS.format(number)
    return Shard(vectors, RemoteTexts(remote[name], offsets, entry.rows, entry.files[name].bytes), start)
