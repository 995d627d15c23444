"""An index whose shards are open on the machines of a cluster: it is searched as one that is open here."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.cluster.connection import connect
from tttnn.cluster.groups import ON_MISSING, WAIT_SECONDS, ShardGroups
from tttnn.cluster.shard_group import Source
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.index import IndexVersion, Pairs, RowRanges, fetch_manifest, merge_candidates, read_version
from tttnn.neighbors import PartialAnswer


class ClusterIndex:
    """
    An index whose shards are open on the machines of a cluster. Rows and distances are those of the same index here.

    A batch of queries goes to each group of shards once. Each gives its candidates, which are merged by distance, and
    by row where distances are equal. Documents come from the groups that have them, and only those that were found.

    Args:
        groups (`ShardGroups`):
            The groups of shards.
        version (`IndexVersion`):
            The index, and its open shards.
        source (`str`):
            Says to people where it is.
    """

    def __init__(self, groups: ShardGroups, version: IndexVersion, source: str) -> None:
        manifest = version.manifest
        self.groups = groups
        self.embedder = manifest.embedder.to_json()
        self.digest = version.digest
        self.source = source
        self.passage_tokens = manifest.passage_tokens
        self.nprobe, self.k_factor = manifest.storage.search.get("nprobe"), manifest.storage.search.get("k_factor", 1)
        starts = np.cumsum([0] + [entry.rows for entry in manifest.shards]).tolist()
        self.rows = RowRanges([(starts[number], manifest.shards[number].rows) for number in version.numbers])
        group_of = {number: group for group, shards in enumerate(groups.shards) for number in shards}
        self._groups = [group_of[number] for number in version.numbers]  # of each open shard

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return (
            f"ClusterIndex(rows={len(self)}, shards={len(self._groups)}, groups={len(self.groups)}, "
            f"embedder='{self.embedder['name']}', source='{self.source}')"
        )

    @property
    def keeps_vectors(self) -> bool:
        """Whether `vectors` gives those that distances are measured by."""
        return bool(self.groups.properties[0]["keeps_vectors"])

    @property
    def search_key(self) -> list[Any]:
        """What the rows that a search finds depend on, beside query and `top_k`: that of the same index here."""
        return [self.digest, self.nprobe, self.k_factor]

    @property
    def is_prefixed(self) -> bool:
        """Whether fewer rows are always the first of more."""
        return bool(self.groups.properties[0]["is_prefixed"])

    def search(self, queries: np.ndarray, top_k: int) -> list[Pairs]:
        """
        Find the nearest rows of each query.

        Args:
            queries (`np.ndarray`):
                float32 of shape `(n, dimension)`.
            top_k (`int`):
                Rows wanted for each query.

        Returns:
            `list[list[tuple[float, int]]]`: as `DocumentIndex.search`; a `PartialAnswer` if groups did not answer and
            `on_missing` is `"report"`.

        Raises:
            `ConnectionError`: If a group does not answer, and `on_missing` is another.
        """
        if len(queries) == 0:
            return []
        groups = self.groups
        arguments = (groups.ray.put(queries), top_k * self.k_factor, self.nprobe)
        found = groups.ask("find", {group: arguments for group in range(len(groups))})
        results = merge_candidates([*found.values()], top_k, [self.k_factor])[0] if found else [[] for _ in queries]
        missing = sorted(number for group in {*range(len(groups))} - {*found} for number in groups.shards[group])
        return PartialAnswer(results, missing) if missing else results

    def documents(self, rows: Sequence[int]) -> list[Document]:
        """
        Fetch the documents of rows. Groups that do not answer are waited for, whatever `on_missing` says.

        Args:
            rows (`Sequence[int]`):
                Rows of the whole index.

        Returns:
            `list[Document]`: in the order of `rows`.

        Raises:
            `IndexError`: If no open shard has a row.
            `ConnectionError`: If a group does not answer.
        """
        parts = self._ask_for(rows, "documents")
        return [parts[row] for row in rows]

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """
        Give the vectors of rows. Groups that do not answer are waited for.

        Args:
            rows (`Sequence[int]`):
                Rows of the whole index, at least one.

        Returns:
            `np.ndarray`: float32 of shape `(len(rows), dimension)`.

        Raises:
            `IndexError`: If no open shard has a row.
            `ConnectionError`: If a group does not answer.
        """
        parts = self._ask_for(rows, "vectors")
        return np.stack([parts[row] for row in rows])

    def row_at(self, place: int) -> int:
        """
        Give the number of a row by its place among the rows of the open shards.

        Args:
            place (`int`):
                Below `len(index)`.

        Returns:
            `int`: the row of the whole index.
        """
        return self.rows.row_at(place)

    def _ask_for(self, rows: Sequence[int], method: str) -> dict[int, Any]:
        """Ask each group for its rows."""
        wanted: defaultdict[int, list[int]] = defaultdict(list)
        for row in dict.fromkeys(rows):
            wanted[self._groups[self.rows.find(row)[0]]].append(row)
        answers = self.groups.ask(method, {group: (part,) for group, part in wanted.items()}, waits=True)
        return {row: value for group, part in wanted.items() for row, value in zip(part, answers[group], strict=True)}


def open_on_cluster(
    address: str,
    repo_id: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    shards: Sequence[int] | None = None,
    texts: str = "local",
    trust_index: bool = False,
    replicas: int = 1,
    on_missing: str = "wait",
    timeout: float = WAIT_SECONDS,
) -> ClusterIndex:
    """
    Open an index on the machines of a Ray cluster; `NeighborRetriever.from_pretrained(..., cluster=...)` calls this.

    Each machine opens some of the shards, from the Hub's cache, a folder that all machines share, or the Hub, of which
    it fetches only these shards. An index that another job has opened there is used as it is.

    Args:
        address (`str`):
            Of the cluster, as in `ray.init`; a process that is connected already stays so.
        repo_id (`str` or `Path`):
            The id of a dataset repo, or a folder.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        token (`str` or `bool`, *optional*):
            Token for a private repo.
        cache_dir (`str` or `Path`, *optional*):
            Folder of the downloads on each machine. By default the Hub's cache.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Whether to use only what is in the caches.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards to open. By default all.
        texts (`str`, *optional*, defaults to `"local"`):
            `"remote"` leaves the texts on the Hub.
        trust_index (`bool`, *optional*, defaults to `False`):
            As in `open_index`.
        replicas (`int`, *optional*, defaults to `1`):
            Machines on which each shard is open.
        on_missing (`str`, *optional*, defaults to `"wait"`):
            What a search does about machines that do not answer: `"wait"`, `"raise"` or `"report"`.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that are waited, at most.

    Returns:
        `ClusterIndex`: open on all machines that take part.

    Raises:
        `ImportError`: If Ray is missing.
        `RuntimeError`: If there is no cluster, or its machines have another version of tttnn.
        `ValueError`: If an option is out of range, a machine does not see the index, or has another version of it.
        `ConnectionError`: If machines, or the Hub, do not answer.
    """
    if on_missing not in ON_MISSING:
        raise InputError(f"`on_missing` is {on_missing!r}. Pass one of {', '.join(ON_MISSING)}.")
    if replicas < 1:
        raise InputError(f"`replicas` is {replicas}. Pass at least 1.")
    ray = connect(address)
    place: dict[str, Any] = {
        "token": token,
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "local_files_only": local_files_only,
    }
    folder = fetch_manifest(repo_id, revision, **place)
    index = read_version(folder, shards)
    is_local = folder == Path(repo_id).expanduser()
    # all machines fetch one commit, whatever is pushed meanwhile
    where, commit = (str(folder.resolve()), None) if is_local else (str(repo_id), folder.name)
    source = Source(where, commit, {**place, "texts": texts}, trust_index)
    groups = ShardGroups(ray, source, index, replicas, on_missing, timeout)
    return ClusterIndex(groups, index, str(repo_id) if is_local else f"{repo_id}@{revision or 'main'}")
