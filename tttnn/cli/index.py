"""The commands that move and read indexes."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from tttnn.helptext import Parser
from tttnn.neighbors import PartialAnswer


def add_push(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn push`."""
    parser = commands.add_parser(
        "push",
        help="upload an index to the Hub",
        description="Upload an index to a dataset repo of the Hub, with a card. An interrupted upload resumes when it "
        "is started again.",
    )
    parser.set_defaults(run=_push)
    parser.add_argument("index", metavar="INDEX", help="folder of an index")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name of the repo, created if there is none")
    parser.add_argument("--revision", help="branch to push to, created if there is none (default: main)")
    parser.add_argument("--commit-message", help="message of the commit (default: Upload index)")
    parser.add_argument("--private", action="store_true", help="make a new repo private")
    parser.add_argument("--license", help="licence of the corpus (default: that of the card before, or unknown)")


def _push(arguments: argparse.Namespace) -> None:
    from tttnn.index import push_index

    commit = push_index(
        arguments.index,
        arguments.repo_id,
        private=arguments.private or None,
        revision=arguments.revision,
        commit_message=arguments.commit_message,
        license=arguments.license,
    )
    print(commit.commit_url)


def add_pull(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn pull`."""
    parser = commands.add_parser(
        "pull",
        help="download an index from the Hub, or some of its shards",
        description="Download an index from the Hub to a folder, with its card and its files for viewers, and verify "
        "it. An interrupted download resumes when it is started again.",
    )
    parser.set_defaults(run=_pull)
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name of the repo")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--revision", help="branch, tag or commit of the index")
    parser.add_argument("--shards", type=int, nargs="+", help="numbers of the shards to download (default: all)")


def _pull(arguments: argparse.Namespace) -> None:
    from tttnn.index import pull_index, read_manifest

    pull_index(arguments.repo_id, arguments.output, arguments.revision, shards=arguments.shards)
    manifest = read_manifest(arguments.output)
    numbers = manifest.chosen_shards(arguments.shards)
    rows = sum(manifest.shards[number].rows for number in numbers)
    print(f"Downloaded {rows} rows in {len(numbers)} shards: {arguments.output}")


def add_retrieve(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn retrieve`."""
    parser = commands.add_parser(
        "retrieve",
        help="show the nearest documents of a text",
        description="Show the nearest documents of a text: squared L2 distance, id, lines of a passage, and how each "
        "begins.",
    )
    parser.set_defaults(run=_retrieve)
    parser.add_argument("index", metavar="INDEX", help="folder or Hub id of an index")
    parser.add_argument("text", metavar="TEXT", help="the query")
    parser.add_argument("--top-k", type=int, default=5, help="documents to show")
    parser.add_argument("--revision", help="branch, tag or commit of the index")
    parser.add_argument("--embedder", help="the index's embedder, if its name or path has changed")
    parser.add_argument("--shards", type=int, nargs="+", help="numbers of the shards to search (default: all)")
    parser.add_argument(
        "--texts", choices=("local", "remote"), default="local", help="remote: leave the texts on the Hub"
    )
    parser.add_argument("--trust-index", action="store_true", help="open a --factory index that was built elsewhere")
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="search on the Ray cluster at this address, such as auto (default: here)"
    )
    parser.add_argument("--replicas", type=int, default=1, help="with --cluster: machines on which each shard is open")
    parser.add_argument(
        "--on-missing",
        choices=("wait", "raise", "report"),
        default="wait",
        help="with --cluster, if a machine does not answer: wait for it, fail, or leave out its shards and say so",
    )
    parser.add_argument("--json", action="store_true", help="print whole neighbors, one JSON object per line")


def _retrieve(arguments: argparse.Namespace) -> None:
    from tttnn.retrieval import NeighborRetriever

    retriever = NeighborRetriever.from_pretrained(
        arguments.index,
        revision=arguments.revision,
        shards=arguments.shards,
        texts=arguments.texts,
        embedder=arguments.embedder,
        trust_index=arguments.trust_index,
        cluster=arguments.cluster,
        replicas=arguments.replicas,
        on_missing=arguments.on_missing,
    )
    answer = retriever.retrieve([arguments.text], arguments.top_k)
    if isinstance(answer, PartialAnswer):
        print(f"Without the shards {answer.missing_shards}, whose machines do not answer.", file=sys.stderr)
    for neighbor in answer[0]:
        if arguments.json:
            has_all_letters = "utf" in (sys.stdout.encoding or "").lower()
            print(json.dumps(asdict(neighbor), ensure_ascii=not has_all_letters, default=str))
            continue
        beginning = " ".join(neighbor.text.split())[:100]
        print(f"{neighbor.distance:8.4f}  {_place(neighbor.metadata)}\n          {beginning}")


def _place(metadata: dict[str, Any]) -> str:
    """Name a document, and the lines of a passage."""
    if {"start_line", "end_line"} <= metadata.keys():
        return f"{metadata['id']}, lines {metadata['start_line']}-{metadata['end_line']}"
    return str(metadata["id"])


def add_info(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn info`."""
    parser = commands.add_parser(
        "info",
        help="show what an index holds",
        description="Show what an index holds. Only its manifest is read, and downloaded if the index is on the Hub.",
    )
    parser.set_defaults(run=_info)
    parser.add_argument("index", metavar="INDEX", help="folder or Hub id of an index")
    parser.add_argument("--revision", help="branch, tag or commit of the index")


def _info(arguments: argparse.Namespace) -> None:
    from tttnn.index import FORMAT_VERSION, fetch_manifest, read_manifest

    manifest = read_manifest(fetch_manifest(arguments.index, arguments.revision))
    embedder, tokens, recall, files = manifest.embedder, manifest.passage_tokens, manifest.recall, manifest.files
    found = f"{recall.recall:.3f} of the {recall.top_k} nearest (target: {recall.target})" if recall else "exact"
    rows = {
        "rows": f"{manifest.num_rows:,}",
        "documents": f"{manifest.num_documents:,}",
        "passages": f"rows, of at most {tokens} tokens" if tokens else "no: rows are documents",
        "shards": f"{len(manifest.shards):,}",
        "storage": f"{manifest.storage.preset} (Faiss: {manifest.storage.factory})",
        "recall": found,
        "embedder": embedder.name + (f" at {embedder.revision}" if embedder.revision else ""),
        "sources": ", ".join(manifest.sources) or "unknown",
        "size": f"{sum(file.bytes for file in files.values()):,} bytes in {len(files):,} files",
        "digest": manifest.corpus_digest,
        "format version": FORMAT_VERSION,
    }
    for name, value in rows.items():
        print(f"{name + ':':16}{value}")
