"""The layout of Faiss files, checked before Faiss reads them: Faiss believes every size that a file claims."""

import struct
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tttnn.errors import InputError


FLAT_HEADER = struct.Struct("<4siqqq?iQ")
TRAINED_L2 = (True, 1)  # whether it is trained, and Faiss's number of the metric


class ScaleConstants(NamedTuple):
    """What is the same in all files of the preset `scale` of a dimension: fields of its two codes and of its lists."""

    rabitq: tuple[Any, ...]
    lists: tuple[int, int, int]  # bytes of a code, rows of a block, bytes of a block
    refine: tuple[Any, ...]


def flat_header(num_rows: int, dimension: int) -> bytes:
    """Give what stands before the vectors in a Faiss file of an `IndexFlatL2`, as Faiss 1.15 writes it."""
    return FLAT_HEADER.pack(b"IxF2", dimension, num_rows, 1 << 20, 1 << 20, *TRAINED_L2, num_rows * dimension)


def check_layout(content: mmap, path: Path, preset: str, scale_constants: Callable[[int], ScaleConstants]) -> None:
    """Make sure that a file is what a preset makes, and that each array in it is as long as rows and dimension say."""
    file = _FaissFile(content, path)
    if preset == "flat":
        rows, dimension = file.header(b"IxF2")
        file.array(4, rows * dimension)
    elif preset == "ivf":
        rows, dimension = file.header(b"IwFl")
        num_lists = file.quantizer(dimension)
        file.array_lists(num_lists, rows, 4 * dimension)
    else:
        rows, dimension = file.header(b"IxRF")
        file.part(b"Iwrn", rows, dimension)
        num_lists = file.quantizer(dimension)  # so long that a forged dimension has no room in the file
        constants = scale_constants(dimension)
        # of RaBitQ dimension, code size, metric, bits; of its fast scan residual, code size, sizes, kernel, query bits
        file.expect("<QQiQ?QiQQiB?", constants.rabitq)
        file.block_lists(num_lists, rows, constants.lists)
        file.part(b"IxSQ", rows, dimension)
        file.expect("<iifQQ", constants.refine)
        file.array(4, 0)
        file.array(1, rows * constants.refine[-1])
        file.expect("<f", (1.0,))
    file.check(file.place == len(content), f"{len(content) - file.place} bytes follow its end")


class _FaissFile:
    """A Faiss file, read from its beginning to its end; every size is compared with what is left of it."""

    def __init__(self, content: mmap, path: Path) -> None:
        self.content, self.path, self.place = content, path, 0

    def check(self, condition: bool, problem: str) -> None:
        if not condition:
            raise InputError(
                f"Faiss cannot read '{self.path}': {problem}. It is damaged or forged: fetch or rebuild the index."
            )

    def skip(self, size: int) -> None:
        self.check(size <= len(self.content) - self.place, f"byte {self.place + size} is behind its end")
        self.place += size

    def take(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        self.skip(size)
        return struct.unpack_from(layout, self.content, self.place - size)

    def expect(self, layout: str, values: tuple[Any, ...]) -> None:
        found = self.take(layout)
        self.check(found == values, f"{found} stands where {values} belongs")

    def array(self, bytes_each: int, length: int) -> None:
        self.expect("<Q", (length,))
        self.skip(bytes_each * length)

    def header(self, kind: bytes) -> tuple[int, int]:
        """Give rows and dimension."""
        self.expect("<4s", (kind,))
        dimension, rows, _, _, *trained_l2 = self.take("<iqqq?i")
        if (*trained_l2,) != TRAINED_L2:
            raise InputError(f"'{self.path}' is not an index of squared L2 distances. Fetch or rebuild the index.")
        self.check(rows >= 0 and dimension > 0, f"it claims {rows} rows of dimension {dimension}")
        return rows, dimension

    def part(self, kind: bytes, rows: int, dimension: int) -> None:
        claimed = self.header(kind)
        self.check(claimed == (rows, dimension), f"(rows, dimension) of a part are {claimed}, not {(rows, dimension)}")

    def quantizer(self, dimension: int) -> int:
        """Read the centroids, and that no map of rows follows; give the number of lists."""
        num_lists, nprobe = self.take("<QQ")
        self.check(0 < nprobe <= num_lists, f"it looks into {nprobe} of {num_lists} lists")
        self.part(b"IxF2", num_lists, dimension)
        self.array(4, num_lists * dimension)
        self.expect("<BQ", (0, 0))
        return int(num_lists)

    def array_lists(self, num_lists: int, rows: int, code_size: int) -> None:
        """Read the lengths of lists, of all or of those that are not empty, and go past the lists."""
        self.expect("<4sQQ", (b"ilar", num_lists, code_size))
        (form, length) = self.take("<4sQ")
        sparse = form == b"sprs"
        self.check(sparse or form == b"full", f"lists have the form {form!r}")
        self.check(length <= 2 * num_lists if sparse else length == num_lists, f"it claims {length} list lengths")
        self.skip(8 * length)
        lengths = np.frombuffer(self.content, "<u8", length, self.place - 8 * length)
        if sparse:
            numbers, lengths = lengths[::2], lengths[1::2]
            ordered = len(numbers) == len(lengths) and bool((numbers[1:] > numbers[:-1]).all())
            self.check(ordered and bool((numbers < num_lists).all()), "it names lists that it does not have")
        self.check(sum(lengths.tolist()) == rows, f"its lists do not hold {rows} rows")
        self.skip(rows * (code_size + 8))

    def block_lists(self, num_lists: int, rows: int, constants: tuple[int, int, int]) -> None:
        """Read lists whose codes are padded to whole blocks."""
        self.expect("<4sQQQQ", (b"ilbl", num_lists, *constants))
        _, rows_per_block, block_size = constants
        left = rows
        for _ in range(num_lists):
            (length,) = self.take("<Q")
            self.check(length <= left, f"its lists do not hold {rows} rows")
            self.skip(8 * length)
            self.array(1, -(-length // rows_per_block) * block_size)
            left -= length
        self.check(left == 0, f"its lists do not hold {rows} rows")
