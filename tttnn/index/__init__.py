"""An index: a folder of vectors and texts. Open it, search it, build it, share it."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.index.build.build import IndexSettings, add_documents, build_index
    from tttnn.index.build.tttlm import import_published_index
    from tttnn.index.hub.transfer import fetch_manifest, pull_index, push_index
    from tttnn.index.manifest import FORMAT_VERSION, read_manifest
    from tttnn.index.search import DocumentIndex, open_index

__all__ = [
    "DocumentIndex",
    "FORMAT_VERSION",
    "IndexSettings",
    "add_documents",
    "build_index",
    "fetch_manifest",
    "import_published_index",
    "open_index",
    "pull_index",
    "push_index",
    "read_manifest",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "DocumentIndex": "search",
        "FORMAT_VERSION": "manifest",
        "IndexSettings": "build.build",
        "add_documents": "build.build",
        "build_index": "build.build",
        "fetch_manifest": "hub.transfer",
        "import_published_index": "build.tttlm",
        "open_index": "search",
        "pull_index": "hub.transfer",
        "push_index": "hub.transfer",
        "read_manifest": "manifest",
    },
)
