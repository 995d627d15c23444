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
from tttnn.files import locked
from tttnn.index.build.from_documents import IndexSettings
from tttnn.index.build.unfinished import UnfinishedIndex
from tttnn.index.build.workspace import check_vacant, is_under_way, settle
from tttnn.index.manifest import EmbedderDescription, Manifest, read_manifest
from tttnn.index.vectors import check_factory, default_shard_size, read_vectors


logger = logging.getLogger(__name__)


def import_tttlm_index(
    index_files: Sequence[str | Path],
    data_files: Sequence[str | Path],
    folder: str | Path,
    settings: IndexSettings | None = None,
    embedder: str | Path | SentenceTransformer | Embedder | None = None,
    device: str | None = None,
    *,
    show_progress_bar: bool = False,
) -> None:
    """
    Make an index of Faiss files and the texts that they were made of, without embedding them again.

    Each pair of files becomes a shard. Vectors are mapped and texts streamed, so that memory holds neither; of another
    preset than `"flat"` it holds one file. An import that was killed resumes after the last finished shard.

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
        `FileExistsError`: If the folder is not empty.
        `FileNotFoundError`: If a file is not there.
        `ValueError`: If numbers of files, rows or dimensions differ, a file is of another kind, or a setting is wrong.
        `RuntimeError`: If the embedder cannot be loaded, or another process is writing.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3 and its published index.
    """
    vectors, settings = _open(index_files, data_files), settings or IndexSettings()
    _check_settings(settings, vectors[0].d)
    folder, sources = Path(folder).resolve(), [Path(path).name for path in data_files]
    with locked(folder):
        settled = settle(folder)
        if settled is not None and not settled.is_addition and _is_import_of(folder, sources, settings):
            return
        if not is_under_way(folder):
            check_vacant(folder)  # before an embedder is loaded
        loaded = None if settings.preset == "flat" else _embedder_of(vectors[0], data_files[0], embedder, device)
        names = [Path(path).name for path in (*index_files, *data_files)]
        build_settings = {"files": names, "rows": [index.ntotal for index in vectors], "passage_tokens": None}
        build = UnfinishedIndex(folder, build_settings, default_shard_size(vectors[0].d))
        with tqdm(desc="Importing", unit="document", disable=not show_progress_bar) as progress:
            for number in range(len(build.shards), len(vectors)):
                documents = _counted(read_documents(data_files[number]), progress)
                build.write_shard(documents, vectors[number], f"'{data_files[number]}'")
        if loaded is None:
            storage, recall = build.store_exactly(), None
        else:
            storage, recall = build.store(settings.preset, loaded, settings.recall_target)
        described = _embedder(vectors[0].d)
        build.finish(Manifest.of(build.shards, described, storage, sources=sources, recall=recall))


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


def _is_import_of(folder: Path, sources: list[str], settings: IndexSettings) -> bool:
    """Whether an import that had only to be tidied up is the one that is asked for."""
    manifest = read_manifest(folder)
    target = settings.recall_target if manifest.recall is None else manifest.recall.target
    same = (sources, settings.preset, settings.recall_target)
    return (manifest.sources, manifest.storage.preset, target) == same


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
