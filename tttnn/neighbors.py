"""`Neighbor`, and what may serve as a retriever of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

import numpy as np

from tttnn.documents import Document, check_text
from tttnn.errors import InputError, InputTypeError


@dataclass(frozen=True)
class Neighbor:
    """
    A document of the corpus that lies near a query.

    Args:
        id (`int`):
            Its row in the whole index.
        text (`str`):
            Its text.
        distance (`float`):
            Squared L2 distance to the query.
        metadata (`dict[str, Any]`, *optional*):
            The document's own `id`, its `source` and what else its row held.
    """

    id: int
    text: str
    distance: float
    metadata: dict[str, Any] = field(default_factory=dict)


Item = TypeVar("Item")


class PartialAnswer(list[Item]):
    """
    What was found for each text, while machines that hold some shards of an index did not answer.

    Args:
        items (`Iterable`):
            As the whole answer.
        missing_shards (`list[int]`):
            Numbers of the shards that were not searched.
    """

    def __init__(self, items: Iterable[Item], missing_shards: list[int]) -> None:
        super().__init__(items)
        self.missing_shards = missing_shards


class Retriever(Protocol):
    """
    What `TestTimeTrainer` needs of a retriever; `NeighborRetriever` is one.

    `retrieve` is all that it must have. It may also say what it is (`Described`), prepare for its first query
    (`Prepared`), give vectors to selectors that need them (`Embedded`), and have a length: the number of documents
    that it can find.
    """

    def retrieve(self, texts: list[str], top_k: int) -> list[list[Neighbor]]:
        """
        Find the nearest corpus documents of each text.

        Args:
            texts (`list[str]`):
                Query texts.
            top_k (`int`):
                Candidates wanted per text; fewer are legal.

        Returns:
            `list[list[Neighbor]]`: in the order of `texts`, each nearest first; a `PartialAnswer` if a part of the
            corpus was not searched.
        """
        ...


@runtime_checkable
class Described(Protocol):
    """A retriever that says what it is, so that a journal tells its neighbors from those of another."""

    def describe(self) -> dict[str, Any]:
        """
        Say what the neighbors depend on.

        Returns:
            `dict[str, Any]`: JSON-able, for example `{"index": "my corpus, 2026-11-01"}`.
        """
        ...


@runtime_checkable
class Prepared(Protocol):
    """A retriever that checks before the first document whether it can serve."""

    def prepare(self, top_k: int) -> None:
        """
        Load what is needed and check that `top_k` candidates can be asked for.

        Args:
            top_k (`int`):
                Candidates that will be asked for per text.

        Raises:
            `ValueError`: If there are fewer documents.
        """
        ...


@runtime_checkable
class Embedded(Protocol):
    """A retriever that gives vectors, for selectors and methods that compare them."""

    def vectors(self, query: str, neighbors: list[Neighbor]) -> tuple[np.ndarray, np.ndarray]:
        """
        Give the vectors by which the neighbors of a query were found.

        Args:
            query (`str`):
                A query.
            neighbors (`list[Neighbor]`):
                Some or none of its neighbors, as `retrieve` gave them.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: the vector of the query, float32 of shape `(dimension,)`, and those of the
            neighbors, float32 of shape `(len(neighbors), dimension)`.
        """
        ...


def describe_retriever(retriever: Retriever | None) -> dict[str, Any]:
    """
    Say where neighbors come from, for a journal.

    Args:
        retriever (`Retriever`, *optional*):
            The retriever.

    Returns:
        `dict[str, Any]`: its type, `index` and `num_indexed`, and what else its `describe` says.
    """
    description: dict[str, Any] = retriever.describe() if isinstance(retriever, Described) else {}
    return {"retriever": type(retriever).__qualname__, "index": None, "num_indexed": None, **description}


def as_neighbors(neighbors: Sequence[Neighbor | str]) -> list[Neighbor]:
    """
    Make neighbors of texts that were found elsewhere.

    Args:
        neighbors (`Sequence[Neighbor]` or `Sequence[str]`):
            Neighbors, or texts; a text gets its position for an id, and a distance of NaN.

    Returns:
        `list[Neighbor]`: in the same order.

    Raises:
        `TypeError`: If one string is given, or a text is not a string.
        `ValueError`: If a text holds a lone surrogate.
    """
    if isinstance(neighbors, str):
        raise InputTypeError("`neighbors` is one string, but a list is needed. Pass `[text]`.")
    made = [item if isinstance(item, Neighbor) else Neighbor(row, item, nan) for row, item in enumerate(neighbors)]
    for neighbor in made:
        check_text(neighbor.text, f"neighbor {neighbor.id}")
    return made


@dataclass
class Selection:
    """
    The neighbors of one document that are trained on.

    Args:
        neighbors (`list[Neighbor]`):
            In the order of training. One that stands there twice is trained on twice.
        overlaps (`list[float]`):
            The overlap of each one with the scored text (see `tttnn.selection.overlap`).
        near_copies (`list[int]`):
            Ids of the neighbors that nearly copy the scored text, the document or the part before the scored text;
            those that were dropped for it are included.
        own (`list[int]`):
            Ids of the chosen neighbors that come from the document itself, by their id or source.
        weights (`list[float]`, *optional*):
            A factor for the loss of each neighbor, above 0. By default each counts once.
    """

    neighbors: list[Neighbor] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    near_copies: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    weights: list[float] | None = None

    def check(self) -> None:
        """
        Make sure that weights can be factors of losses.

        Raises:
            `ValueError`: If there is not one for each neighbor, or one is not a positive finite number.
        """
        if self.weights is None:
            return
        if len(self.weights) != len(self.neighbors):
            raise InputError(
                f"The selector gave {len(self.weights)} weights for {len(self.neighbors)} neighbors. Let it give one "
                "for each, or none."
            )
        for weight, neighbor in zip(self.weights, self.neighbors, strict=True):
            if not 0 < weight < inf:
                raise InputError(
                    f"The selector gave neighbor {neighbor.id} the weight {weight}. Let it give finite weights above "
                    "0, and leave out a neighbor that shall not count."
                )


class Rules(TypedDict, total=False):
    """Which candidates no selector may choose: the options of these names in `tttnn.selection.select`."""

    max_distance: float | None
    exclude: str | None
    drop_near_copies: bool
    distinct: str | None


# Gives the vectors of the query and of candidates, as `Embedded.vectors`, when it is called.
Vectors = Callable[[list[Neighbor]], tuple[np.ndarray, np.ndarray]]


class Selector(Protocol):
    """Chooses among the candidates of a document; `tttnn.selection.SELECTORS` has those of the library."""

    def __call__(
        self,
        candidates: list[Neighbor],
        document: Document,
        scored_text: str,
        *,
        num_neighbors: int,
        order: str,
        seed: int,
        vectors: Vectors,
        **rules: Unpack[Rules],
    ) -> Selection:
        """
        Choose; the arguments are those of `tttnn.selection.select`.

        A selector that compares candidates with each other calls `vectors` with them; one that does not costs no
        vector.
        """
        ...
