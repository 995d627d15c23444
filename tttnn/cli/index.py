"""The commands that make, extend and move indexes."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.documents import Document


DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"


def build_index(argv: Sequence[str]) -> None:
    """
    Embed and index a corpus.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    arguments = _build_parser().parse_args(argv)
    for option, given in (("--private", arguments.private), ("--license", arguments.license)):
        if given and not arguments.push_to_hub:
            raise InputError(
                f"`{option}` was passed without `--push-to-hub`. Name the repo to push to, or leave it out."
            )
    _check_apart(arguments.source, arguments.output)

    from tttnn.embedding import Embedder
    from tttnn.index.build.build import IndexSettings, build_index
    from tttnn.index.hub.transfer import push_index

    documents = _documents(arguments)
    embedder = Embedder(
        arguments.embedder,
        arguments.embedder_revision,
        arguments.max_seq_length,
        arguments.device,
        arguments.query_prompt,
        arguments.document_prompt,
    )
    preset = arguments.factory or arguments.preset
    settings = IndexSettings(preset, arguments.shard_size, arguments.passages, arguments.recall_target)
    names = _names(arguments.source)
    built = build_index(documents, embedder, arguments.output, settings, arguments.batch_size, names, True)
    print(f"{'Indexed' if built else 'Nothing to do: the index holds'} {_size(arguments.output)}")
    if arguments.push_to_hub:
        private, license = arguments.private or None, arguments.license
        print(push_index(arguments.output, arguments.push_to_hub, private, license=license).commit_url)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tttnn build-index",
        description="Embed a corpus and write a Faiss index of it, with its texts, to a folder. Interrupted, it goes "
        "on after the last documents that were embedded when it is started again; an index of the same corpus is left "
        "as it is.",
    )
    _corpus_options(parser)
    parser.add_argument(
        "--output",
        required=True,
        help="folder to write, outside of the sources; new, empty, or an index of this corpus",
    )
    parser.add_argument(
        "--embedder",
        default=DEFAULT_EMBEDDER,
        help="Hub id or folder of a sentence-transformers model, or tttlm, the one of the method's authors "
        "(default: %(default)s)",
    )
    parser.add_argument("--embedder-revision", help="branch, tag or commit of the embedder")
    parser.add_argument(
        "--max-seq-length", type=int, help="tokens of a text that are embedded (default: the embedder's)"
    )
    parser.add_argument("--query-prompt", help="put before each query (default: the embedder's own, if it has one)")
    parser.add_argument("--document-prompt", help="put before each text of the corpus (default: the embedder's own)")
    parser.add_argument(
        "--passages", type=int, metavar="TOKENS", help="index passages of at most so many tokens (default: documents)"
    )
    _storage_options(parser)
    parser.add_argument("--shard-size", type=int, help="rows in a shard (default: as many as 512 MiB of vectors)")
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="then upload the index to that dataset repo")
    parser.add_argument("--private", action="store_true", help="make a new repo private")
    parser.add_argument("--license", help="of the corpus (default: that of the card before, or unknown)")
    return parser


def add(argv: Sequence[str]) -> None:
    """
    Append documents to an index.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    parser = argparse.ArgumentParser(
        prog="tttnn add",
        description="Embed documents and append them to an index, as new shards. Interrupted, it goes on when it is "
        "started again with the same documents.",
    )
    parser.add_argument("index", help="folder of an index")
    _corpus_options(parser)
    parser.add_argument("--embedder", help="embedder of the index, where it now has another name or path")
    arguments = parser.parse_args(argv)

    from tttnn.embedding import Embedder
    from tttnn.index.build.build import add_documents
    from tttnn.index.manifest import read_manifest

    _check_apart(arguments.source, arguments.index)
    built = read_manifest(arguments.index).embedder.to_json()
    documents = _documents(arguments)
    embedder = Embedder.from_description(built, arguments.embedder, arguments.device)
    added = add_documents(
        documents, embedder, arguments.index, arguments.batch_size, _names(arguments.source), show_progress_bar=True
    )
    print(f"Added {added} rows; the index holds {_size(arguments.index)}")


def push(argv: Sequence[str]) -> None:
    """
    Upload an index to the Hub.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    parser = argparse.ArgumentParser(
        prog="tttnn push",
        description="Upload an index to a dataset repo of the Hub, with a card. Interrupted, it goes on when it is "
        "started again.",
    )
    parser.add_argument("index", help="folder of an index")
    parser.add_argument("repo_id", help="user/name of the repo; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repo private")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--commit-message", help="of the commit")
    parser.add_argument("--license", help="of the corpus (default: that of the card before, or unknown)")
    arguments = parser.parse_args(argv)

    from tttnn.index.hub.transfer import push_index

    commit = push_index(
        arguments.index,
        arguments.repo_id,
        private=arguments.private or None,
        revision=arguments.revision,
        commit_message=arguments.commit_message,
        license=arguments.license,
    )
    print(commit.commit_url)


def pull(argv: Sequence[str]) -> None:
    """
    Download an index from the Hub.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    parser = argparse.ArgumentParser(
        prog="tttnn pull",
        description="Download an index from the Hub to a folder, with its card and its files for viewers, and verify "
        "it. Interrupted, it goes on when it is started again.",
    )
    parser.add_argument("repo_id", help="user/name of the repo")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--shards", type=int, nargs="+", help="shards to download (default: all)")
    arguments = parser.parse_args(argv)

    from tttnn.index.hub.transfer import pull_index
    from tttnn.index.manifest import read_manifest

    pull_index(arguments.repo_id, arguments.output, arguments.revision, shards=arguments.shards)
    manifest = read_manifest(arguments.output)
    numbers = manifest.chosen_shards(arguments.shards)
    rows = sum(manifest.shards[number].rows for number in numbers)
    print(f"Downloaded {rows} rows in {len(numbers)} shards: {arguments.output}")


def import_tttlm(argv: Sequence[str]) -> None:
    """
    Make an index of the files that the method's authors published.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    parser = argparse.ArgumentParser(
        prog="tttnn import-tttlm",
        description="Make an index of the files that the method's authors published: nothing is embedded, and neither "
        "vectors nor texts are loaded into memory. Interrupted, it goes on from the last finished shard when it is "
        "started again.",
    )
    parser.add_argument("--index-files", nargs="+", required=True, metavar="FILE", help="00.jsonl.index and so on")
    parser.add_argument(
        "--data-files",
        nargs="+",
        required=True,
        metavar="FILE",
        help="00.jsonl or 00.jsonl.zst and so on, in the same order: line i is row i",
    )
    parser.add_argument("--output", required=True, help="folder to write; new or empty")
    _storage_options(parser)
    parser.add_argument(
        "--embedder",
        help="name or path of that of the files, by which the recall of all but flat is measured (default: tttlm)",
    )
    parser.add_argument("--device", help="where it runs, cuda or cpu say (default: the fastest)")
    arguments = parser.parse_args(argv)

    from tttnn.index.build.build import IndexSettings
    from tttnn.index.build.tttlm import import_tttlm_index

    settings = IndexSettings(arguments.factory or arguments.preset, recall_target=arguments.recall_target)
    import_tttlm_index(
        arguments.index_files,
        arguments.data_files,
        arguments.output,
        settings,
        arguments.embedder,
        arguments.device,
        show_progress_bar=True,
    )
    print(f"Imported {_size(arguments.output)}")


def _corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        help=".jsonl, .jsonl.zst or .parquet files of rows, folders of files (each a text), or ids of Hub data sets",
    )
    parser.add_argument("--text-column", default="text", help="column with the text (default: %(default)s)")
    parser.add_argument("--id-column", help="column with the id (default: id, or else file and line)")
    parser.add_argument("--split", default="train", help="split of a Hub data set (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--max-documents", type=int, help="stop after that many documents")
    parser.add_argument(
        "--batch-size", type=int, help="texts in one forward pass of the embedder (default: 8 on a CPU, else 32)"
    )
    parser.add_argument(
        "--device",
        nargs="+",
        help="where the embedder runs, cuda or cpu say; several names for several processes (default: the fastest)",
    )


def _storage_options(parser: argparse.ArgumentParser) -> None:
    storage = parser.add_mutually_exclusive_group()
    storage.add_argument(
        "--preset",
        choices=("flat", "ivf", "scale"),
        default="flat",
        help="how vectors are stored: flat is exact, ivf looks into some lists, scale also compresses "
        "(default: %(default)s)",
    )
    storage.add_argument("--factory", help="a name of Faiss's index factory, in the place of a preset")
    parser.add_argument(
        "--recall-target",
        type=float,
        default=0.95,
        help="share of the 20 nearest that a search should find, for all but flat (default: %(default)s)",
    )


def _check_apart(sources: Sequence[str], index: str) -> None:
    """Make sure that an index does not become a part of its own corpus."""
    for source in (Path(source).expanduser() for source in sources):
        if source.is_dir() and Path(index).resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"The index '{index}' would lie in the folder '{source}', whose files are indexed. Choose a place "
                "outside of it."
            )


def _documents(arguments: argparse.Namespace) -> "Iterator[Document]":
    from tttnn.documents import read_documents

    return read_documents(
        arguments.source,
        arguments.text_column,
        arguments.id_column,
        arguments.split,
        arguments.revision,
        limit=arguments.max_documents,
    )


def _names(sources: Sequence[str]) -> list[str]:
    """Name sources for others: ids of the Hub whole, paths by their last part."""
    return [Path(source).resolve().name if Path(source).expanduser().exists() else source for source in sources]


def _size(folder: str) -> str:
    from tttnn.index.manifest import read_manifest

    manifest = read_manifest(folder)
    recall, shards = manifest.recall, len(manifest.shards)
    found = f", recall@{recall.top_k} {recall.recall:.3f}" if recall else ""
    parts = f"{shards} shard{'s' if shards > 1 else ''}"
    return f"{manifest.num_rows} rows of {manifest.num_documents} documents in {parts}{found}: {folder}"
