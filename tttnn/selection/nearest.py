"""The nearest neighbors that no rule leaves out."""

from itertools import islice

from tttnn.documents import Document
from tttnn.neighbors import Neighbor, Selection, Vectors
from tttnn.selection.rules import Sieve


def select(
    candidates: list[Neighbor],
    document: Document,
    scored_text: str,
    *,
    num_neighbors: int,
    order: str = "nearest",
    seed: int = 0,
    vectors: Vectors | None = None,
    max_distance: float | None = None,
    exclude: str | None = None,
    drop_near_copies: bool = False,
    distinct: str | None = None,
) -> Selection:
    """
    Choose the neighbors to train on: the nearest that no rule excludes, in the given order.

    A neighbor is a near-copy if it overlaps by at least one half with the scored text, with the whole document, or
    with the part before the scored text.

    A neighbor comes from the test document itself if it has the document's id. If the id only counts rows
    (`is_position`), or if only the `source` is the same, it must also be a near-copy or stand in the document.

    Args:
        candidates (`list[Neighbor]`):
            What was retrieved, nearest first.
        document (`Document`):
            The test document.
        scored_text (`str`):
            The part of it that is scored.
        num_neighbors (`int`):
            Neighbors wanted; there may be fewer.
        order (`str`, *optional*, defaults to `"nearest"`):
            `"nearest"` first, `"farthest"` first (of the chosen ones), or `"random"`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random order.
        vectors (`Callable`, *optional*):
            Gives the vectors of the query and of candidates; the nearest are chosen without them.
        max_distance (`float`, *optional*):
            Drop neighbors whose squared L2 distance is larger.
        exclude (`str`, *optional*):
            Drop neighbors that share this field with the document: `"id"`, `"source"` or another of its metadata.
            Values are compared as JSON has them, so that a date equals the one that was read from an index.
        drop_near_copies (`bool`, *optional*, defaults to `False`):
            Drop near-copies.
        distinct (`str`, *optional*):
            `"text"`: of several candidates with the same text, keep the nearest. `"document"`: moreover keep one
            candidate of each document, the nearest of its passages. A document is known by its `id` and `source`.

    Returns:
        `Selection`: at most `num_neighbors` neighbors.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
    """
    sieve = Sieve(document, scored_text, max_distance, exclude, drop_near_copies, distinct)
    return sieve.selection([*islice(sieve.left_of(candidates), num_neighbors)], order, seed)
