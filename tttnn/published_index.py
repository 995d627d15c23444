"""The index that the method's authors published, as an index of this library."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from tttnn.building import IndexSettings
from tttnn.conversion import choose_storage, convert_shards
from tttnn.corpus import Document, read_documents
from tttnn.embedding import TTTLM, Embedder
from tttnn.manifest import MANIFEST, read_manifest
from tttnn.moving import check_vacant, intact, locked, move_index, unfinished_folder
from tttnn.quantization import check_factory, default_shard_size, read_vectors
from tttnn.unfinished import UnfinishedBuild
from tttnn.writing import FLAT_STORAGE, ShardWriter, make_manifest, write_json


def import_published_index(
    index_files: Sequence[str | Path],
    data_files: Sequence[str | Path],
    folder: str | Path,
    settings: IndexSettings | None = None,
    embedder: str | Path | SentenceTransformer | None = None,
    device: str | None = None,
    show_progress_bar: bool = False,
) -> None:
    """
    Make an index of Faiss files and the texts that they were made of, without embedding them again.

    Each pair of files becomes a shard. Vectors are copied from a memory map and texts streamed, so that memory holds
    neither; with another preset than `"flat"` it holds what becomes of the vectors of one file. Killed and started
    again, it goes on from the last finished shard.

    Args:
        index_files (`Sequence[str]` or `Sequence[Path]`):
            Flat Faiss indexes of L2 distances, `00.jsonl.index` and so on.
        data_files (`Sequence[str]` or `Sequence[Path]`):
            `.jsonl` or `.jsonl.zst` files of the Pile, in the same order; line i of a file is row i of its index.
        folder (`str` or `Path`):
            New or empty.
        settings (`IndexSettings`, *optional*):
            `preset` and `recall_target`, as `build_index` takes them; shards and their documents are those of the
            files. By default vectors are stored exactly.
        embedder (`str`, `Path` or `SentenceTransformer`, *optional*):
            That of the files, for the queries by which the recall of other presets is measured. By default `"tttlm"`
            is loaded from the Hub.
        device (`str`, *optional*):
            Where it runs.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the documents on a bar.

    Raises:
        `FileExistsError`: If the folder is there and not empty, or `NAME.unfinished` beside it is somebody's own.
        `FileNotFoundError`: If a file is not there.
        `ValueError`: If the numbers of files, rows or dimensions differ, or a file is of another kind.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3 and its published index.
    """
    vectors, settings = _open(index_files, data_files), settings or IndexSettings()
    loaded, folder = _for_queries(settings, embedder, device, vectors[0].d), Path(folder).resolve()
    with locked(folder):
        unfinished, sources = unfinished_folder(folder), [Path(path).name for path in data_files]
        if (unfinished / MANIFEST).is_file():
            _check_same(unfinished, sources, settings.preset)
        else:
            check_vacant(folder)
            names = [Path(path).name for path in (*index_files, *data_files)]
            kept = {"files": names, "rows": [index.ntotal for index in vectors], "passage_tokens": None}
            build = UnfinishedBuild(unfinished, kept, default_shard_size(vectors[0].d))
            choose_storage(unfinished, settings.preset, settings.recall_target)
            with tqdm(desc="Importing", unit="document", disable=not show_progress_bar) as progress:
                for number in range(len(build.shards), len(vectors)):
                    _write_shard(build, number, vectors[number], Path(data_files[number]), progress)
            _write_manifest(build, vectors[0].d, sources, settings, loaded)
        move_index(unfinished, folder)


def _for_queries(
    settings: IndexSettings, model: str | Path | SentenceTransformer | None, device: str | None, dimension: int
) -> Embedder | None:
    """Make sure, before anything is copied, that vectors can be stored so, and load what embeds queries for it."""
    if settings.shard_size is not None or settings.passage_tokens is not None:
        raise ValueError(
            f"{settings} were given, but shards and documents are those of the files. Leave out `shard_size` and "
            "`passage_tokens`."
        )
    if settings.preset == "flat":
        return None
    check_factory(settings.preset, dimension)
    described = _embedder(dimension)
    embedder = Embedder.from_description(described, model, device)
    embedder.check(described)
    return embedder


def _check_same(unfinished: Path, sources: list[str], preset: str) -> None:
    with intact(unfinished):
        manifest = read_manifest(unfinished)
    found, asked = (manifest["sources"], manifest["storage"]["preset"]), (sources, preset)
    if found != asked:
        raise ValueError(
            f"'{unfinished}' holds an interrupted build of {found[0]} as {found[1]!r}, and not of {sources} as "
            f"{preset!r}. Import those to go on with it, or remove that folder."
        )


def _write_manifest(
    build: UnfinishedBuild, dimension: int, sources: list[str], settings: IndexSettings, embedder: Embedder | None
) -> None:
    storage, recall = FLAT_STORAGE, None
    if embedder is not None:
        given = build.shards, embedder, settings.preset, settings.recall_target
        storage, recall = convert_shards(build.folder, *given)
    storage = {**storage, "shard_size": build.shard_size}
    manifest = make_manifest(build.shards, _embedder(dimension), storage, sources=sources, recall=recall)
    write_json(build.folder / MANIFEST, manifest)


def _open(index_files: Sequence[str | Path], data_files: Sequence[str | Path]) -> list[Any]:
    if len(index_files) != len(data_files) or not index_files:
        raise ValueError(
            f"{len(index_files)} index files and {len(data_files)} data files were given. Each index needs its texts: "
            "name as many of the one as of the other, in the same order."
        )
    for path in (*index_files, *data_files):
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file '{path}'. Check the path.")
    vectors = [read_vectors(Path(path), "flat") for path in index_files]
    for path, index in zip(index_files, vectors, strict=True):
        if index.d != vectors[0].d:
            raise ValueError(
                f"'{path}' has dimension {index.d}, and '{index_files[0]}' has {vectors[0].d}. They are not of one "
                "embedder."
            )
    return vectors


def _write_shard(build: UnfinishedBuild, number: int, vectors: Any, data_file: Path, progress: tqdm) -> None:  # noqa: ANN401
    writer = ShardWriter(build.folder, number)
    writer.add(_counted(read_documents(data_file), progress))
    if writer.num_rows != vectors.ntotal:
        raise ValueError(
            f"'{data_file}' holds {writer.num_rows} documents, but its index holds {vectors.ntotal} vectors. They do "
            "not belong together, or one was not fetched to its end."
        )
    build.finish(writer, vectors)


def _counted(documents: Iterable[Document], progress: tqdm) -> Iterator[Document]:
    for document in documents:
        yield document
        progress.update()


def _embedder(dimension: int) -> dict[str, Any]:
    """Describe the embedder of the method's authors, without loading it; what it would give is not known here."""
    return {
        "name": "tttlm",
        "revision": None,
        "model": TTTLM[0],
        "pooling": ["mean"],
        "normalized": False,
        "max_seq_length": TTTLM[2],
        "dimension": dimension,
        "query_prompt": "",
        "document_prompt": "",
        "probe": None,
    }
