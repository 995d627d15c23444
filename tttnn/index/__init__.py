"""An index: a folder of vectors and texts. Open it, search it, build it, share it."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.index.build.by_shards import ShardProgress, build_shards, finish_index
    from tttnn.index.build.from_documents import IndexSettings, add_documents, build_index, index_in_memory
    from tttnn.index.build.passages import split_into_passages
    from tttnn.index.build.save import write_index
    from tttnn.index.build.tttlm import import_tttlm_index
    from tttnn.index.hub.transfer import fetch_index, fetch_manifest, pull_index, push_index
    from tttnn.index.manifest import FORMAT_VERSION, read_manifest
    from tttnn.index.opening import IndexVersion, open_index, read_version
    from tttnn.index.rows import RowRanges
    from tttnn.index.search import Candidates, DocumentIndex, Index, Pairs, find_candidates, merge_candidates
    from tttnn.index.subset import IndexSubset

__all__ = [
    "Candidates",
    "DocumentIndex",
    "FORMAT_VERSION",
    "Index",
    "IndexSettings",
    "IndexSubset",
    "IndexVersion",
    "Pairs",
    "RowRanges",
    "ShardProgress",
    "add_documents",
    "build_index",
    "build_shards",
    "fetch_index",
    "fetch_manifest",
    "find_candidates",
    "finish_index",
    "import_tttlm_index",
    "index_in_memory",
    "merge_candidates",
    "open_index",
    "pull_index",
    "push_index",
    "read_manifest",
    "read_version",
    "split_into_passages",
    "write_index",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "Candidates": "search",
        "DocumentIndex": "search",
        "FORMAT_VERSION": "manifest",
        "Index": "search",
        "IndexSettings": "build.from_documents",
        "IndexSubset": "subset",
        "IndexVersion": "opening",
        "Pairs": "search",
        "RowRanges": "rows",
        "ShardProgress": "build.by_shards",
        "add_documents": "build.from_documents",
        "build_index": "build.from_documents",
        "build_shards": "build.by_shards",
        "fetch_index": "hub.transfer",
        "fetch_manifest": "hub.transfer",
        "find_candidates": "search",
        "finish_index": "build.by_shards",
        "import_tttlm_index": "build.tttlm",
        "index_in_memory": "build.from_documents",
        "merge_candidates": "search",
        "open_index": "opening",
        "pull_index": "hub.transfer",
        "push_index": "hub.transfer",
        "read_manifest": "manifest",
        "read_version": "opening",
        "split_into_passages": "build.passages",
        "write_index": "build.save",
    },
)
