"""How the vectors of an index are stored and searched: exactly, in inverted lists, or compressed."""

import math
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tttnn.errors import InputError
from tttnn.files import sync
from tttnn.index.faiss_files import ScaleConstants, check_layout


# Names of Faiss's index factory. `scale` keeps one bit and a little per dimension in memory, and ranks what it finds
# again by vectors of half precision, which stay on disk.
STORAGE_PRESETS = {
    "flat": "Flat",
    "ivf": "IVF{nlist},Flat",
    "scale": "IVF{nlist},RaBitQfs,Refine(SQfp16)",
}
TRAINING_ROWS_PER_LIST = 64  # Faiss warns below 39
MAX_TRAINING_BYTES = 512 << 20
MAX_SHARD_BYTES = 512 << 20  # of the vectors of a shard, unless another size is asked for
K_FACTORS = (4, 8, 16)  # candidates that are ranked again, for each that is asked for
RECALL_TOP_K = 20
# The first four bytes of the Faiss file of a preset.
FILE_KINDS = {"flat": b"IxF2", "ivf": b"IwFl", "scale": b"IxRF"}
# Of an index made by a factory: those, products, scalars, graphs, rotations, fast scans and single bits.
OTHER_KINDS = b"IxF2 IwFl IxRF IxPq IwPQ IxSQ IwSq IHNf IHNs IHNp IxPT IPfs IwPf Ixrq Iwrq Iwrn".split()
HEADER_BYTES = 45  # of the smallest kind


def import_faiss() -> ModuleType:
    """Import Faiss, which comes in a build for CPUs and one for GPUs and so is an extra."""
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "Faiss is missing. Install it: `pip install tttnn[cpu]`, or `pip install tttnn[gpu]`."
        ) from None
    return faiss


def faiss_version() -> str:
    """Give the version of Faiss."""
    return str(import_faiss().__version__)


def factory_for(preset: str, num_rows: int, dimension: int) -> str:
    """Give the name for `faiss.index_factory`; a name that is no preset stays as it is."""
    # 4 sqrt(n) lists, with at least 39 rows each on average, in the index and in the sample that it is trained on
    sample = min(num_rows, MAX_TRAINING_BYTES // (4 * dimension))
    nlist = max(1, min(round(4 * math.sqrt(num_rows)), sample // 39))
    return STORAGE_PRESETS.get(preset, preset).format(nlist=nlist)


def default_shard_size(dimension: int) -> int:
    """Give the number of rows whose vectors take 512 MiB, which memory holds while the files of a shard are made."""
    # not smaller, because each shard holds all centroids, and its lists are padded to whole blocks
    return max(1, MAX_SHARD_BYTES // (4 * dimension))


def check_factory(preset: str, dimension: int) -> None:
    """Make sure, before anything is embedded, that Faiss can make an index, and that its file will be read."""
    faiss, factory = import_faiss(), factory_for(preset, 39, dimension)
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise _cannot(f"make the index {factory!r} of dimension {dimension}", error) from None
    if bytes(faiss.serialize_index(index)[:4]) not in OTHER_KINDS:
        kind = type(index).__name__
        raise InputError(f"{factory!r} makes an index of the kind {kind}, which is not read. Choose another factory.")


def num_training_rows(num_rows: int, dimension: int) -> int:
    """Give the number of rows that an index is trained on: 64 for each list, but at most 512 MiB."""
    wanted = TRAINING_ROWS_PER_LIST * round(4 * math.sqrt(num_rows))
    return max(1, min(num_rows, wanted, MAX_TRAINING_BYTES // (4 * dimension)))


def exact_index(dimension: int) -> Any:  # noqa: ANN401
    """Make an empty index in memory that keeps vectors as they are."""
    return import_faiss().IndexFlatL2(dimension)


def trained_index(factory: str, vectors: np.ndarray) -> Any:  # noqa: ANN401
    """Make an empty Faiss index that knows from a sample how to divide and compress vectors."""
    faiss = import_faiss()
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_L2)
        index.train(vectors)
    except RuntimeError as error:
        raise _cannot(
            f"make the index {factory!r} from {len(vectors)} vectors of dimension {vectors.shape[1]}", error
        ) from None
    return index


def _cannot(action: str, error: RuntimeError) -> ValueError:
    reason = " ".join(str(error).split())[-300:]
    return InputError(f"Faiss cannot {action}: {reason}. Choose another preset or factory.")


def write_vectors(index: Any, path: Path, work: Path) -> None:  # noqa: ANN401
    """Write a Faiss file, by way of the folder `work`; it is there whole or not at all, whatever happens."""
    unfinished = work / (path.name + ".tmp")
    import_faiss().write_index(index, str(unfinished))
    sync(unfinished)
    os.replace(unfinished, path)
    sync(path.parent)


def claimed_shape(path: Path) -> tuple[int, int]:
    """Give the rows and the dimension that a Faiss file claims, without Faiss."""
    with path.open("rb") as file:
        header = file.read(16)
    return int.from_bytes(header[8:16], "little"), int.from_bytes(header[4:8], "little")


def read_vectors(path: Path, preset: str) -> Any:  # noqa: ANN401
    """
    Open a Faiss file, memory-mapped as far as Faiss leaves it there.

    Vectors that are stored as they are, in flat storage, in inverted lists or for ranking again, are mapped, which
    costs no memory. Compressed vectors that are scanned in blocks, and graphs, are copied: Faiss 1.15 cannot use them
    in place. The file is mapped as long as the index lives, but not as long as a `faiss.clone_index` of it.
    """
    faiss = import_faiss()
    with path.open("rb") as file:
        kind = file.read(4)
        if kind not in ([FILE_KINDS[preset]] if preset in FILE_KINDS else OTHER_KINDS):
            raise InputError(
                f"'{path}' is of the kind {kind!r}, not of that of the preset {preset!r}. Fetch or rebuild the index."
            )
        # not by Faiss, which would count the pages that it copies twice, and read all in single pages
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) < HEADER_BYTES:  # inside the header of a mapped file Faiss 1.15 reads past the end
        raise InputError(f"Faiss cannot read '{path}' ({len(mapped)} bytes). Fetch or rebuild the index.")
    if preset in STORAGE_PRESETS:
        check_layout(mapped, path, preset, _scale_constants)
    content = np.frombuffer(mapped, dtype=np.uint8)
    try:
        index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(content), len(content)))
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise InputError(f"Faiss cannot read '{path}' ({reason}). Fetch or rebuild the index.") from None
    index.referenced_objects = [content]  # what is not copied is read from the mapping
    mapped.madvise(mmap.MADV_DONTNEED)
    if isinstance(index, faiss.IndexRefine):
        mapped.madvise(mmap.MADV_RANDOM)  # rows are ranked again here and there: what lies beside is not read
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and not isinstance(
        faiss.downcast_InvertedLists(lists.invlists), faiss.ArrayInvertedLists | faiss.BlockInvertedLists
    ):
        raise InputError(f"'{path}' keeps its lists in another file, which is not read. Fetch or rebuild the index.")
    if index.metric_type != faiss.METRIC_L2 or not index.is_trained:
        raise InputError(f"'{path}' is not an index of squared L2 distances. Fetch or rebuild the index.")
    return index


def _scale_constants(dimension: int) -> ScaleConstants:
    """Ask Faiss what it writes for an index of the preset `scale`, whatever is in it."""
    faiss = import_faiss()
    index = faiss.index_factory(dimension, STORAGE_PRESETS["scale"].format(nlist=1), faiss.METRIC_L2)
    scan, exact = faiss.downcast_index(index.base_index), faiss.downcast_index(index.refine_index)
    code, lists = scan.rabitq, faiss.downcast_InvertedLists(scan.invlists)
    return ScaleConstants(
        (
            *(code.d, code.code_size, code.metric_type, code.nb_bits),
            *(scan.by_residual, scan.code_size, scan.bbs, scan.qbs2, scan.M2, scan.implem, scan.qb, scan.centered),
        ),
        (lists.code_size, lists.n_per_block, lists.block_size),
        (exact.sq.qtype, exact.sq.rangestat, exact.sq.rangestat_arg, exact.sq.d, exact.sq.code_size),
    )


def tune(
    index: Any,  # noqa: ANN401
    measure: Callable[[dict[str, int], Sequence[int]], list[float]],
    target: float,
) -> tuple[dict[str, int], float]:
    """
    Find settings of search that reach a recall, with the fewest lists, and of those with the fewest candidates.

    `measure` gives the recall with settings (`nprobe`, if the index has lists) and each of several `k_factor`, which
    is 1 where nothing is ranked again. The result is the settings and their recall; the best if none reaches `target`.
    """
    faiss = import_faiss()
    ranks = isinstance(index, faiss.IndexRefine)
    lists = faiss.try_extract_index_ivf(index)
    probes = [] if lists is None else [*(2**power for power in range(lists.nlist.bit_length())), lists.nlist]
    best: tuple[dict[str, int], float] = ({}, -1.0)
    for settings in [{"nprobe": nprobe} for nprobe in probes] or [{}]:
        factors = K_FACTORS if ranks else (1,)
        for k_factor, recall in zip(factors, measure(settings, factors), strict=True):
            if recall > best[1]:
                best = ({**settings, "k_factor": k_factor} if ranks else settings, recall)
            if recall >= target:
                return best
    return best
