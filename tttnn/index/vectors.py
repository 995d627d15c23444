"""How the vectors of an index are stored and searched: exactly, in inverted lists, or compressed."""

import math
import mmap
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tttnn.errors import InputError


# Names of Faiss's index factory. `scale` keeps one bit and a little per dimension in memory, and ranks what it finds
# again by vectors of half precision, which stay on disk.
PRESETS = {
    "flat": "Flat",
    "ivf": "IVF{nlist},Flat",
    "scale": "IVF{nlist},RaBitQfs,Refine(SQfp16)",
}
TRAINING_ROWS_PER_LIST = 64  # Faiss warns below 39
MAX_TRAINING_BYTES = 512 << 20
MAX_SHARD_BYTES = 512 << 20  # of the vectors of a shard, unless another size is asked for
K_FACTORS = (4, 8, 16)  # candidates that are ranked again, for each that is asked for
RECALL_TOP_K = 20
# The first four bytes of the Faiss files that are read. What is not among them, an index of other files say, is not.
FILE_KINDS = {"flat": (b"IxF2",), "ivf": (b"IwFl",), "scale": (b"IxRF",)}
# Of an index made by a factory: those, products, scalars, graphs, rotations, fast scans and single bits.
OTHER_KINDS = b"IxF2 IwFl IxRF IxPq IwPQ IxSQ IwSq IHNf IHNs IHNp IxPT IPfs IwPf Ixrq Iwrq Iwrn".split()
HEADER_BYTES = 45  # of the smallest kind


def import_faiss() -> ModuleType:
    """
    Import Faiss, which comes in a build for CPUs and one for GPUs and so is an extra.

    Returns:
        `ModuleType`: the module `faiss`.

    Raises:
        `ImportError`: If neither is installed.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "Faiss is missing. Install it: `pip install tttnn[cpu]`, or `pip install tttnn[gpu]`."
        ) from None
    return faiss


def factory_for(preset: str, num_rows: int, dimension: int) -> str:
    """
    Name the Faiss index of an index of so many rows.

    Args:
        preset (`str`):
            `"flat"`, `"ivf"` or `"scale"`, or a name of Faiss's index factory as it is.
        num_rows (`int`):
            Rows of the whole index, from which the number of inverted lists follows: 4 sqrt(n), with at least 39 rows
            each on the average, in the index and in the sample that it is trained on.
        dimension (`int`):
            Of the vectors.

    Returns:
        `str`: a name for `faiss.index_factory`.
    """
    sample = min(num_rows, MAX_TRAINING_BYTES // (4 * dimension))
    nlist = max(1, min(round(4 * math.sqrt(num_rows)), sample // 39))
    return PRESETS.get(preset, preset).format(nlist=nlist)


def default_shard_size(dimension: int) -> int:
    """
    Say how many rows a shard takes: as many as memory should hold at once, while its files are made.

    It is not smaller, for each shard holds all centroids, and its lists are padded to whole blocks.

    Args:
        dimension (`int`):
            Of the vectors.

    Returns:
        `int`: rows whose vectors take 512 MiB in single precision.
    """
    return max(1, MAX_SHARD_BYTES // (4 * dimension))


def check_factory(preset: str, dimension: int) -> None:
    """
    Make sure that Faiss knows an index, before anything is embedded for it.

    Args:
        preset (`str`):
            As `factory_for` takes it.
        dimension (`int`):
            Of the vectors.

    Raises:
        `ValueError`: If Faiss does not know it, or cannot make it of this dimension.
    """
    faiss, factory = import_faiss(), factory_for(preset, 39, dimension)
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise _cannot(f"make the index {factory!r} of dimension {dimension}", error) from None
    if bytes(faiss.serialize_index(index)[:4]) not in OTHER_KINDS:
        kind = type(index).__name__
        raise InputError(f"{factory!r} makes an index of the kind {kind}, which is not read. Choose another factory.")


def num_training_rows(num_rows: int, dimension: int) -> int:
    """
    Say how many rows an index is trained on.

    Args:
        num_rows (`int`):
            Rows of the whole index.
        dimension (`int`):
            Of its vectors.

    Returns:
        `int`: 64 for each inverted list of `factory_for`, as far as 512 MB hold them.
    """
    wanted = TRAINING_ROWS_PER_LIST * round(4 * math.sqrt(num_rows))
    return max(1, min(num_rows, wanted, MAX_TRAINING_BYTES // (4 * dimension)))


def trained_index(factory: str, vectors: np.ndarray) -> Any:  # noqa: ANN401
    """
    Make an empty Faiss index that knows how to divide and compress vectors.

    Args:
        factory (`str`):
            A name for `faiss.index_factory`.
        vectors (`np.ndarray`):
            float32 of shape `(n, dimension)`: a sample of what will be indexed.

    Returns:
        `faiss.Index`: of squared L2 distances, trained, without rows.

    Raises:
        `ValueError`: If Faiss knows no such index, or cannot train it on so few vectors.
    """
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


def read_vectors(path: Path, preset: str) -> Any:  # noqa: ANN401
    """
    Open a Faiss file, mapped into memory as far as Faiss leaves it there.

    Vectors as they are, in flat storage, inverted lists or for ranking again, are mapped, which costs no memory. Lists
    of compressed vectors that are scanned in blocks, and graphs, are copied: Faiss 1.15 cannot use them in place.

    Args:
        path (`Path`):
            The file.
        preset (`str`):
            What it should be, from the manifest.

    Returns:
        `faiss.Index`: of squared L2 distances. The file is mapped as long as it lives, and a copy by
        `faiss.clone_index` not longer.

    Raises:
        `ValueError`: If the file is of another kind, or Faiss cannot read it.
    """
    faiss = import_faiss()
    with path.open("rb") as file:
        kind = file.read(4)
        if kind not in FILE_KINDS.get(preset, OTHER_KINDS):
            raise InputError(
                f"'{path}' is of the kind {kind!r}, not of that of the preset {preset!r}. Fetch or build the index "
                "anew."
            )
        # not by Faiss, which would count the pages that it copies twice, and read all in single pages
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) < HEADER_BYTES:  # inside the header of a mapped file Faiss 1.15 reads past the end
        raise InputError(f"Faiss cannot read '{path}' ({len(mapped)} bytes). Fetch or build the index anew.")
    content = np.frombuffer(mapped, dtype=np.uint8)
    try:
        index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(content), len(content)))
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise InputError(f"Faiss cannot read '{path}' ({reason}). Fetch or build the index anew.") from None
    index.referenced_objects = [content]  # what is not copied is read from the mapping
    if sys.platform != "win32":
        mapped.madvise(mmap.MADV_DONTNEED)
        if isinstance(index, faiss.IndexRefine):
            mapped.madvise(mmap.MADV_RANDOM)  # rows are ranked again here and there: what lies beside is not read
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and not isinstance(
        faiss.downcast_InvertedLists(lists.invlists), faiss.ArrayInvertedLists | faiss.BlockInvertedLists
    ):
        raise InputError(
            f"'{path}' keeps its lists in another file, which is not read. Fetch or build the index anew."
        )
    if index.metric_type != faiss.METRIC_L2 or not index.is_trained:
        raise InputError(f"'{path}' is not an index of squared L2 distances. Fetch or build the index anew.")
    return index


def tune(
    index: Any,  # noqa: ANN401
    measure: Callable[[dict[str, int], Sequence[int]], list[float]],
    target: float,
) -> tuple[dict[str, int], float]:
    """
    Find settings of search that reach a recall: with the fewest lists, and of those the fewest candidates.

    Args:
        index (`faiss.Index`):
            Of a shard, or one that is trained like it.
        measure (`Callable`):
            Measures the recall with settings, and with each of several `k_factor` beside them. The settings are
            `nprobe`, the inverted lists that are looked into, where the index has lists. A `k_factor` says how many
            candidates are ranked again for each that is asked for; it is 1 where none are.
        target (`float`):
            The recall wanted.

    Returns:
        `tuple[dict[str, int], float]`: the settings, and their recall; the best where none reaches the target.
    """
    faiss = import_faiss()
    ranks = isinstance(index, faiss.IndexRefine)
    lists = faiss.try_extract_index_ivf(index)
    probes = [] if lists is None else [*(2**power for power in range(lists.nlist.bit_length())), lists.nlist]
    best: tuple[dict[str, int], float] = ({}, -1.0)
    for settings in [{"nprobe": nprobe} for nprobe in probes] or [{}]:
        factors = K_FACTORS if ranks else (1,)
        for k_factor, found in zip(factors, measure(settings, factors), strict=True):
            if found > best[1]:
                best = ({**settings, "k_factor": k_factor} if ranks else settings, found)
            if found >= target:
                return best
    return best
