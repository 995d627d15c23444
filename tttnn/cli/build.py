"""The commands that make and extend indexes."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttnn.documents import Corpus
from tttnn.errors import InputError
from tttnn.helptext import Parser


if TYPE_CHECKING:
    from tttnn.index import ShardProgress


DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"


def add_build_index(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn build-index`."""
    parser = commands.add_parser(
        "build-index",
        help="embed and index a corpus",
        description="Embed a corpus, and write a Faiss index of it with its texts to a folder. An interrupted build "
        "resumes after the last embedded documents when it is started again. An index of the same corpus stays as it "
        "is. Several processes or machines that share the folder build it with --shards, and --finish makes it an "
        "index.",
    )
    parser.set_defaults(run=lambda arguments: _build_index(arguments, parser))
    _corpus_options(parser, required=False)
    parser.add_argument("--output", help="folder to write, outside of the sources: new, empty, or an index of them")
    parser.add_argument(
        "--shards",
        type=_shards,
        metavar="FIRST:END",
        help="build only the shards from FIRST up to, not including, END that nobody has; `:` means all",
    )
    parser.add_argument(
        "--finish", metavar="FOLDER", help="make an index of the shards in this folder; several calls share the work"
    )
    parser.add_argument(
        "--embedder",
        help="Hub id or folder of a sentence-transformers model, or tttlm, the model of the method's authors "
        f"(default: {DEFAULT_EMBEDDER}; with --finish, that of the shards)",
    )
    parser.add_argument("--embedder-revision", help="branch, tag or commit of the embedder")
    parser.add_argument("--max-seq-length", type=int, help="tokens of a text to embed (default: the embedder's)")
    parser.add_argument("--query-prompt", help="text put before each query (default: the embedder's, if any)")
    parser.add_argument("--document-prompt", help="text put before each document (default: the embedder's, if any)")
    parser.add_argument(
        "--passages", type=int, metavar="TOKENS", help="index passages of at most this many tokens, not documents"
    )
    _storage_options(parser)
    parser.add_argument("--shard-size", type=int, help="rows of a shard (default: as many as 512 MiB of vectors)")
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="build on the machines of the Ray cluster at this address, such as auto, which share the folder",
    )
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="upload the index to this dataset repo at the end")
    parser.add_argument("--private", action="store_true", help="make a new repo private")
    parser.add_argument("--license", help="licence of the corpus (default: that of the card before, or unknown)")


def _build_index(arguments: argparse.Namespace, parser: Parser) -> None:
    for option, value in (("--private", arguments.private), ("--license", arguments.license)):
        if value and not arguments.push_to_hub:
            raise InputError(
                f"`{option}` was passed without `--push-to-hub`. Name the repo to push to, or leave it out."
            )
    if arguments.finish is not None:
        _finish(arguments, parser)
        return
    if not arguments.source or arguments.output is None:
        raise InputError("A corpus and `--output` are needed: `tttnn build-index CORPUS --output FOLDER`.")
    if arguments.cluster is not None and (arguments.shards is not None or arguments.device):
        raise InputError(
            "`--cluster` gives each machine its shards and its device. Leave out `--shards` and `--device`."
        )
    if arguments.shards is not None and arguments.push_to_hub:
        raise InputError("`--shards` makes no index yet. Pass `--push-to-hub` with `--finish`.")
    _check_apart(arguments.source, arguments.output)

    from tttnn.embedding import Embedder
    from tttnn.index import IndexSettings, build_index, build_shards

    if arguments.cluster is not None:  # its machines have other working directories
        arguments.source = [_absolute(source) for source in arguments.source]
    documents = _documents(arguments)
    _check_devices(arguments.device)
    make_embedder = partial(
        Embedder,
        _absolute(arguments.embedder or DEFAULT_EMBEDDER),
        arguments.embedder_revision,
        arguments.max_seq_length,
        arguments.device,
        arguments.query_prompt,
        arguments.document_prompt,
    )
    preset = arguments.factory or arguments.preset
    settings = IndexSettings(preset, arguments.shard_size, arguments.passages, arguments.recall_target)
    options: dict[str, Any] = {"sources": _names(arguments.source), "show_progress_bar": True}
    output, batch_size = arguments.output, arguments.batch_size
    if arguments.cluster is not None:
        from tttnn.cluster import build_on_cluster

        built = build_on_cluster(arguments.cluster, documents, make_embedder, output, settings, batch_size, **options)
        print(f"{'Indexed' if built else 'Nothing to do: the index holds'} {_size(output)}")
        _push(arguments, output)
        return
    embedder = make_embedder()
    if arguments.shards is not None:
        progress = build_shards(documents, embedder, output, settings, arguments.shards, batch_size, **options)
        print(_progress(progress, output))
        return
    built = build_index(documents, embedder, output, settings, batch_size, **options)
    print(f"{'Indexed' if built else 'Nothing to do: the index holds'} {_size(output)}")
    _push(arguments, output)


def _absolute(name: str) -> str:
    """Give the whole path of what is here; an id of the Hub as it is."""
    return str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else name


def _finish(arguments: argparse.Namespace, parser: Parser) -> None:
    """Finish an index that was built by shards; what it is like stands in its folder."""
    allowed = {"command", "run", "finish", "embedder", "device", "push_to_hub", "private", "license"}
    for name in {*vars(arguments)} - allowed:
        value = getattr(arguments, name)
        if value and value != parser.get_default(name):
            raise InputError(
                f"`--finish` takes what it needs from its folder, and `{name.replace('_', '-')}` was passed. Leave it "
                "out."
            )
    _check_devices(arguments.device)

    from tttnn.index import finish_index

    finished = finish_index(arguments.finish, arguments.embedder, arguments.device)
    print(f"{'Indexed' if finished else 'Nothing to do: the index holds'} {_size(arguments.finish)}")
    _push(arguments, arguments.finish)


def _push(arguments: argparse.Namespace, folder: str) -> None:
    from tttnn.index import push_index

    if arguments.push_to_hub:
        private, license = arguments.private or None, arguments.license
        print(push_index(folder, arguments.push_to_hub, private=private, license=license).commit_url)


def _progress(progress: "ShardProgress", folder: str) -> str:
    """Say what a call with `--shards` has built, and what comes next."""
    built, missing, number = progress
    if not number:
        return f"Nothing to do: the index holds {_size(folder)}"
    done = f"Built {len(built)} of {number} shards: {folder}."
    if missing:
        return f"{done} {len(missing)} are not built yet, or others are at them."
    return f"{done} All are built: `tttnn build-index --finish {folder}` makes the index."


def _shards(value: str) -> slice:
    """Read a range of shards, as Python writes it."""
    if not (match := re.fullmatch(r"(\d*):(\d*)", value)) or match[1] and match[2] and int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(
            f"{value!r} is no range of shards. Pass for example 0:50 for the shards 0 to 49, or : for all."
        )
    return slice(int(match[1] or 0), int(match[2]) if match[2] else None)


def add_add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn add`."""
    parser = commands.add_parser(
        "add",
        help="append documents to an index",
        description="Embed documents and append them to an index as new shards. An interrupted command resumes when "
        "it is started again with the same documents.",
    )
    parser.set_defaults(run=_add)
    parser.add_argument("index", metavar="INDEX", help="folder of an index")
    _corpus_options(parser)
    parser.add_argument("--embedder", help="the index's embedder, if its name or path has changed")
    parser.add_argument("--trust-index", action="store_true", help="for a --factory index that was built elsewhere")


def _add(arguments: argparse.Namespace) -> None:
    from tttnn.embedding import Embedder
    from tttnn.index import add_documents, read_manifest

    _check_apart(arguments.source, arguments.index)
    described = read_manifest(arguments.index).embedder.to_json()
    documents = _documents(arguments)
    _check_devices(arguments.device)
    embedder = Embedder.from_description(described, arguments.embedder, arguments.device)
    added = add_documents(
        documents,
        embedder,
        arguments.index,
        arguments.batch_size,
        sources=_names(arguments.source),
        show_progress_bar=True,
        trust_index=arguments.trust_index,
    )
    print(f"Added {added} rows; the index holds {_size(arguments.index)}")


def add_import_tttlm(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn import-tttlm`."""
    parser = commands.add_parser(
        "import-tttlm",
        help="make an index of the files that the method's authors published",
        description="Make an index of the files that the method's authors published. Nothing is embedded, and neither "
        "vectors nor texts are loaded into memory. An interrupted command resumes after the last finished shard when "
        "it is started again.",
    )
    parser.set_defaults(run=_import_tttlm)
    parser.add_argument("--index-files", nargs="+", required=True, metavar="FILE", help="00.jsonl.index and so on")
    parser.add_argument(
        "--data-files",
        nargs="+",
        required=True,
        metavar="FILE",
        help="00.jsonl or 00.jsonl.zst and so on, in the same order: line i is row i",
    )
    parser.add_argument("--output", required=True, help="folder to write: new or empty")
    _storage_options(parser)
    parser.add_argument(
        "--embedder",
        help="name or path of the embedder of the files, which measures the recall of all but flat (default: tttlm)",
    )
    parser.add_argument("--device", help="where the embedder runs, for example cuda or cpu (default: the fastest)")


def _import_tttlm(arguments: argparse.Namespace) -> None:
    from tttnn.index import IndexSettings, import_tttlm_index

    _check_devices(arguments.device and [arguments.device])
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


def _corpus_options(parser: Parser, *, required: bool = True) -> None:
    parser.add_argument(
        "source",
        nargs="+" if required else "*",
        metavar="SOURCE",
        help="files of rows (.jsonl, .json, .csv, .tsv or .parquet), other files and folders of files (each a text), "
        "or ids of Hub data sets",
    )
    parser.add_argument("--text-column", default="text", help="column with the text")
    parser.add_argument("--id-column", help="column with the id (default: id, or else file and line)")
    parser.add_argument("--split", default="train", help="split of a Hub data set")
    parser.add_argument("--dataset-revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--dataset-config", metavar="NAME", help="configuration of a Hub data set")
    parser.add_argument(
        "--include-files",
        action="append",
        metavar="PATTERN",
        help="read only files of a folder whose path in it matches, for example '*.py'; may be repeated",
    )
    parser.add_argument(
        "--exclude-files",
        action="append",
        metavar="PATTERN",
        help="skip files and folders whose path matches, for example 'tests'; may be repeated",
    )
    parser.add_argument("--limit", type=int, help="read only the first N documents (default: all)", metavar="N")
    parser.add_argument(
        "--batch-size", type=int, help="texts in one forward pass of the embedder (default: 8 on a CPU, else 32)"
    )
    parser.add_argument(
        "--device",
        nargs="+",
        help="where the embedder runs, for example cuda or cpu; several names start several processes "
        "(default: the fastest)",
    )


def _storage_options(parser: Parser) -> None:
    storage = parser.add_mutually_exclusive_group()
    storage.add_argument(
        "--preset",
        choices=("flat", "ivf", "scale"),
        default="flat",
        help="how vectors are stored: flat is exact, ivf searches some of its lists, scale also compresses",
    )
    storage.add_argument("--factory", help="a name of Faiss's index factory instead of a preset")
    parser.add_argument(
        "--recall-target",
        type=float,
        default=0.95,
        help="share of the 20 nearest that a search should find; not for flat",
    )


def _check_apart(sources: Sequence[str], index: str) -> None:
    """Make sure that an index does not become a part of the corpus that it indexes."""
    for source in (Path(source).expanduser() for source in sources):
        if source.is_dir() and Path(index).resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"The index '{index}' would be inside the folder '{source}', whose files are indexed. Choose a folder "
                "outside of it."
            )


def _check_devices(names: Sequence[str] | None) -> None:
    """Make sure that torch can use each device here."""
    if not names:
        return
    import torch

    for name in names:
        try:
            device = torch.device(name)
            count = torch.get_device_module(device).device_count()
        except RuntimeError:
            raise InputError(
                f"`--device` is {name!r}, which torch does not know. Pass for example cpu or cuda:0."
            ) from None
        if (device.index or 0) >= count:
            raise InputError(
                f"`--device` is {name!r}, but torch finds {count} devices of that kind here. Pass another device, for "
                "example cpu, or install a build of torch for this one."
            )


class _LocalCorpus(Corpus):
    """A corpus whose documents are counted before they are read."""

    def __len__(self) -> int:
        return self.count()


def _documents(arguments: argparse.Namespace) -> Corpus:
    is_local = all(Path(source).expanduser().exists() for source in arguments.source)
    return (_LocalCorpus if is_local else Corpus)(
        arguments.source,
        arguments.text_column,
        arguments.id_column,
        arguments.split,
        arguments.dataset_revision,
        limit=arguments.limit,
        include_files=arguments.include_files or (),
        exclude_files=arguments.exclude_files or (),
        dataset_config=arguments.dataset_config,
    )


def _names(sources: Sequence[str]) -> list[str]:
    """Name sources for others: ids of the Hub whole, paths by their last part."""
    return [Path(source).resolve().name if Path(source).expanduser().exists() else source for source in sources]


def _size(folder: str) -> str:
    """Say how large an index is, how well it is searched, and where it is."""
    from tttnn.index import read_manifest

    manifest = read_manifest(folder)
    recall, shards = manifest.recall, len(manifest.shards)
    found = f", recall@{recall.top_k} {recall.recall:.3f}" if recall else ""
    parts = f"{shards} shard{'s' if shards > 1 else ''}"
    return f"{manifest.num_rows} rows of {manifest.num_documents} documents in {parts}{found}: {folder}"
