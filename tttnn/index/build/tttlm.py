"""The index that the method's authors published, as an index of this library."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from tttnn.documents import Document, read_documents
from tttnn.embedding import PROBE_TOLERANCE, TTTLM, Embedder
from tttnn.errors import InputError
from tttnn.files import locked, write_json
from tttnn.index.build.build import IndexSettings
from tttnn.index.build.compress import choose_storage, convert_shards
from tttnn.index.build.resume import UnfinishedBuild
from tttnn.index.build.workspace import check_vacant, intact, move_index, unfinished_folder
from tttnn.index.build.writers import ShardWriter
from tttnn.index.manifest import MANIFEST, EmbedderDescription, Manifest, Storage, read_manifest
from tttnn.index.vectors import check_factory, default_shard_size, read_vectors


logger = logging.getLogger(__name__)


def import_published_index(
    index_files: Sequence[str | Path],
    data_files: Sequence[str | Path],
    folder: str | Path,
    settings: IndexSettings | None = None,
    embedder: str | Path | SentenceTransformer | Embedder | None = None,
    device: str | None = None,
    show_progress_bar: bool = False,
) -> None:
    """
    Make an index of Faiss files and the texts that they were made of, without embedding them again.

    Each pair of files becomes a shard. Vectors are mapped and texts streamed, so that memory holds neither; of another
    preset than `"flat"` it holds one file. Killed and started again, it goes on from the last finished shard.

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
        embedder (`str`, `Path`, `SentenceTransformer` or `Embedder`, *optional*):
            That of the files, for the queries by which the recall of other presets is measured. By default `"tttlm"`
            is loaded from the Hub. If its vector of the first text is not that of the files, a warning says so.
        device (`str`, *optional*):
            Where it runs.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the documents on a bar.

    Raises:
        `FileExistsError`: If the folder is not empty, or `NAME.unfinished` beside it is somebody's own.
        `FileNotFoundError`: If a file is not there.
        `ValueError`: If numbers of files, rows or dimensions differ, a file is of another kind, or a setting is wrong.
        `RuntimeError`: If the embedder cannot be loaded, or another process is writing.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3 and its published index.
    """
    vectors, settings = _open(index_files, data_files), settings or IndexSettings()
    _check_settings(settings, vectors[0].d)
    folder = Path(folder).resolve()
    with locked(folder):
        unfinished, sources = unfinished_folder(folder), [Path(path).name for path in data_files]
        if (unfinished / MANIFEST).is_file():
            _check_same(unfinished, sources, settings)
        else:
            check_vacant(folder)
            given = vectors[0], data_files[0], embedder, device
            loaded = None if settings.preset == "flat" else _embedder_of(*given)
            names = [Path(path).name for path in (*index_files, *data_files)]
            kept = {"files": names, "rows": [index.ntotal for index in vectors], "passage_tokens": None}
            build = UnfinishedBuild(unfinished, kept, default_shard_size(vectors[0].d))
            choose_storage(unfinished, settings.preset, settings.recall_target)
            with tqdm(desc="Importing", unit="document", disable=not show_progress_bar) as progress:
                _write_shards(build, vectors, data_files, progress)
            _write_manifest(build, vectors[0].d, sources, settings, loaded)
        move_index(unfinished, folder)


def _check_settings(settings: IndexSettings, dimension: int) -> None:
    if settings.shard_size is not None or settings.passage_tokens is not None:
        raise InputError(
            f"{settings} were given, but shards and documents are those of the files. Leave out `shard_size` and "
            "`passage_tokens`."
        )
    check_factory(settings.preset, dimension)


def _embedder_of(
    vectors: Any,  # noqa: ANN401
    data_file: str | Path,
    embedder: str | Path | SentenceTransformer | Embedder | None,
    device: str | None,
) -> Embedder:
    """Load the embedder of the files, and see whether it gives the vector that they have of the first text."""
    described = _embedder(vectors.d).to_json()
    if not isinstance(embedder, Embedder):
        embedder = Embedder.from_description(described, embedder, device)
    embedder.check(described)
    for document in islice(read_documents(data_file), 1):
        given, stored = embedder.encode_document([document.text])[0], vectors.reconstruct(0)
        if np.linalg.norm(given - stored) > PROBE_TOLERANCE * np.linalg.norm(stored):
            logger.warning(
                "The embedder '%s' gives another vector for the first text of '%s' than its index file has. If it is "
                "not that of the files, their recall is measured, and their search set, by the wrong queries.",
                embedder.name,
                data_file,
            )
    return embedder


def _check_same(unfinished: Path, sources: list[str], settings: IndexSettings) -> None:
    """Make sure that an import of which only the move is left is the one that is asked for."""
    with intact(unfinished):
        manifest = read_manifest(unfinished)
    target = settings.recall_target if manifest.recall is None else manifest.recall.target
    found = manifest.sources, manifest.storage.preset, target
    asked = sources, settings.preset, settings.recall_target
    if found != asked:
        raise InputError(
            f"'{unfinished}' holds an interrupted build of {found} (files, preset, recall target), and not of "
            f"{asked}. Import those to go on with it, or remove that folder."
        )


def _write_manifest(
    build: UnfinishedBuild, dimension: int, sources: list[str], settings: IndexSettings, embedder: Embedder | None
) -> None:
    storage, recall = Storage("flat", "Flat", {}, build.shard_size), None
    if embedder is not None:
        given = build.shards, build.shard_size, embedder, settings.preset, settings.recall_target
        storage, recall = convert_shards(build.folder, *given)
    manifest = Manifest.of(build.shards, _embedder(dimension), storage, sources=sources, recall=recall)
    write_json(build.folder / MANIFEST, manifest.to_json())


def _open(index_files: Sequence[str | Path], data_files: Sequence[str | Path]) -> list[Any]:
    if len(index_files) != len(data_files) or not index_files:
        raise InputError(
            f"{len(index_files)} index files and {len(data_files)} data files were given. Each index needs its texts: "
            "name as many of the one as of the other, in the same order."
        )
    for path in (*index_files, *data_files):
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file '{path}'. Check the path.")
    vectors = [read_vectors(Path(path), "flat") for path in index_files]
    for path, index in zip(index_files, vectors, strict=True):
        if index.d != vectors[0].d:
            raise InputError(
                f"'{path}' has dimension {index.d}, and '{index_files[0]}' has {vectors[0].d}. They are not of one "
                "embedder."
            )
    return vectors


def _write_shards(
    build: UnfinishedBuild,
    vectors: Sequence[Any],
    data_files: Sequence[str | Path],
    progress: tqdm,
) -> None:
    for number in range(len(build.shards), len(vectors)):
        writer = ShardWriter(build.folder, number)
        writer.add(_counted(read_documents(data_files[number]), progress))
        if writer.num_rows != vectors[number].ntotal:
            raise InputError(
                f"'{data_files[number]}' holds {writer.num_rows} documents, but its index holds "
                f"{vectors[number].ntotal} vectors. They do not belong together, or one was not fetched to its end."
            )
        build.finish(writer, vectors[number])


def _counted(documents: Iterable[Document], progress: tqdm) -> Iterator[Document]:
    for document in documents:
        yield document
        progress.update()


def _embedder(dimension: int) -> EmbedderDescription:
    """Describe the embedder of the method's authors, without loading it; what it would give is not known here."""
    return EmbedderDescription(
        name="tttlm",
        revision=None,
        pooling=["mean"],
        normalized=False,
        max_seq_length=TTTLM[2],
        dimension=dimension,
        query_prompt="",
        document_prompt="",
        probe=None,
        model=TTTLM[0],
    )
