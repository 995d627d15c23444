"""Rows of an index by number and by place, where only some of its shards are open."""

from bisect import bisect_right
from collections.abc import Sequence


class RowRanges:
    """
    The rows of the open shards of an index; those between them may be closed.

    Args:
        ranges (`Sequence[tuple[int, int]]`):
            First row and number of rows of each open shard, in the order of their rows.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = [*ranges]
        self._starts = [start for start, _ in self._ranges]

    def __len__(self) -> int:
        return sum(number for _, number in self._ranges)

    def row_at(self, place: int) -> int:
        """
        Give the number of a row by its place among the rows of the open shards.

        Args:
            place (`int`):
                Below `len(rows)`.

        Returns:
            `int`: the row of the whole index; the same number where all shards are open.

        Raises:
            `IndexError`: If there are not so many rows.
        """
        left = place
        for start, number in self._ranges:
            if left < number:
                return start + left
            left -= number
        raise IndexError(f"The index holds {len(self)} rows, and place {place} was asked for.")

    def find(self, row: int) -> tuple[int, int]:
        """
        Find a row.

        Args:
            row (`int`):
                Of the whole index.

        Returns:
            `tuple[int, int]`: which of the open shards has it, counted from 0, and its place in that shard.

        Raises:
            `IndexError`: If none has it.
        """
        number = bisect_right(self._starts, row) - 1
        if number >= 0 and row - self._starts[number] < self._ranges[number][1]:
            return number, row - self._starts[number]
        held = ", ".join(f"{start} to {start + number - 1}" for start, number in self._ranges)
        raise IndexError(f"Row {row} was asked for, but the index holds rows {held}.")
