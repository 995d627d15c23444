"""One record per test document, and the figures that pool them."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args, get_origin

import numpy as np

from tttnn.errors import InputError, InputTypeError
from tttnn.files import finite, json_default


SECONDS = ("retrieve", "train", "score", "model", "total")


@dataclass
class DocumentRecord:
    """
    What happened to one test document.

    Args:
        index (`int`):
            Its position in the data set.
        digest (`str`):
            The first 16 hexadecimal digits of the sha256 of its text.
        id (`str`):
            Its own id.
        metadata (`dict[str, Any]`):
            The other fields of its row.
        num_bytes (`int`):
            UTF-8 bytes of the scored text.
        num_words (`int`):
            Its words, as lm-evaluation-harness counts them.
        status (`str`):
            `"trained"`; `"scored"` by a method that takes no step; or `"untrained"` where nothing was retrieved, and
            then `error` says why.
        error (`str`, *optional*):
            Why it is untrained.
        nll (`list[float]`):
            Negative log-likelihood of the scored text in nats: before training, then after each neighbor where every
            one is scored, else after the last.
        unmixed_nll (`list[float]`):
            The same scores without the mixture; empty where nothing is mixed in.
        neighbor_ids (`list[int]`):
            Rows of the index that were trained on, in order.
        distances (`list[float]`):
            Their squared L2 distances to the query.
        overlaps (`list[float]`):
            Their overlaps with the scored text (see `tttnn.selection.overlap`).
        near_copies (`list[int]`):
            Ids of the neighbors that nearly copy the scored text or another part of the document, dropped ones
            included.
        own_neighbors (`list[int]`):
            Ids of the neighbors that come from the document itself, by their id or source.
        missing_shards (`list[int]`):
            Numbers of the shards that no neighbor could come from, because their machines did not answer.
        weights (`list[float]`):
            Factors of the losses of the neighbors, if they do not all count once.
        train_loss (`list[float]`):
            Mean loss per token of each neighbor at the time of its step, in nats; one pass after another. NaN for a
            neighbor without a target.
        query_train_loss (`list[float]`):
            Mean loss per token of each chunk of the query at the time of its step, in nats.
        tokens (`list[str]`):
            The scored text, token by token; empty unless `save_tokens` asks for it. A character of several tokens is
            in the last of them.
        token_bits (`list[list[float]]`):
            Bits of each token: before, and after, with the mixture; empty unless `save_tokens` asks for it.
        num_scored_tokens (`int`):
            Tokens predicted, over all scoring passes.
        num_read_tokens (`int`):
            Tokens that the model read for them, prompt and neighbors in context included.
        num_trained_tokens (`int`):
            Tokens of all training chunks.
        seconds (`dict[str, float]`):
            Time in the phases `retrieve`, `train` and `score`; of the last two, that in the `model`: forward and
            backward passes, clipping, the optimizer; and in `total`, from the end of the document before to the end
            of this one, so that restoring is in it.
    """

    index: int
    digest: str
    id: str
    metadata: dict[str, Any]
    num_bytes: int
    num_words: int
    status: str = "trained"
    error: str | None = None
    nll: list[float] = field(default_factory=list)
    unmixed_nll: list[float] = field(default_factory=list)
    neighbor_ids: list[int] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    near_copies: list[int] = field(default_factory=list)
    own_neighbors: list[int] = field(default_factory=list)
    missing_shards: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    query_train_loss: list[float] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    token_bits: list[list[float]] = field(default_factory=list)
    num_scored_tokens: int = 0
    num_read_tokens: int = 0
    num_trained_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SECONDS, 0.0))

    def bits_per_byte(self, position: int = -1) -> float:
        """
        Give the bits per byte of this document alone.

        Args:
            position (`int`, *optional*, defaults to `-1`):
                0 before training, -1 after it.

        Returns:
            `float`: NaN for a document without bytes.
        """
        return self.nll[position] / self.num_bytes / math.log(2) if self.num_bytes else math.nan

    def token_gains(self) -> list[tuple[str, float]]:
        """
        Give each scored token the bits that it gained.

        Returns:
            `list[tuple[str, float]]`: before minus after; none where tokens were not kept before and after.
        """
        if len(self.token_bits) != 2:
            return []
        return [(text, before - after) for text, before, after in zip(self.tokens, *self.token_bits, strict=True)]

    def unmixed(self) -> "DocumentRecord":
        """
        Give the record as it would be without the mixture.

        Returns:
            `DocumentRecord`: with `unmixed_nll` in the place of `nll`; a copy where nothing is mixed in.
        """
        return replace(self, nll=self.unmixed_nll or self.nll)

    def to_json(self) -> str:
        """Write the record as a line of JSON, with null for NaN."""
        return json.dumps(finite(asdict(self)), allow_nan=False, default=json_default)

    @classmethod
    def from_json(cls, line: str | bytes) -> "DocumentRecord":
        """Read what `to_json` wrote; a field that came later has its default, and one of another type is refused."""
        row = json.loads(line)
        for name in ("nll", "train_loss", "distances", "query_train_loss"):
            row[name] = [math.nan if value is None else value for value in row.get(name, [])]
        record = cls(**row)
        for item in fields(cls):
            value = getattr(record, item.name)
            if not _is_of(value, item.type):
                raise InputTypeError(f"`{item.name}` is {value!r:.80}, which is no {item.type}")
        return record


def _is_of(value: Any, kind: Any) -> bool:  # noqa: ANN401
    """Whether a value that was read from JSON has the type of a field: a whole number is a float too."""
    if (container := get_origin(kind)) in (list, dict):
        if not isinstance(value, container):
            return False
        return all(_is_of(part, get_args(kind)[-1]) for part in (value if container is list else value.values()))
    return isinstance(value, {float: int | float, Any: object}.get(kind, kind))


def digest(text: str) -> str:
    """Identify a text (`str`) by 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def nll_matrix(records: list[DocumentRecord]) -> np.ndarray:
    """Lay the scores side by side: `(documents, points)` in nats; shorter rows carry their last value forward."""
    points = max((len(record.nll) for record in records), default=0)
    rows = [record.nll + [record.nll[-1]] * (points - len(record.nll)) for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), points)


def summarize(records: list[DocumentRecord]) -> dict[str, float]:
    """Pool all documents, untrained ones included, into metrics: sums are pooled, never means."""
    num_bytes = sum(record.num_bytes for record in records)
    if num_bytes == 0:
        raise InputError(
            f"The {len(records)} documents have no byte to score, so bits per byte is undefined. Pass texts that are "
            "not empty."
        )
    before, after = (sum(record.nll[position] for record in records) for position in (0, -1))
    num_words = sum(record.num_words for record in records)
    return {
        "bits_per_byte_before": before / num_bytes / math.log(2),
        "bits_per_byte": after / num_bytes / math.log(2),
        "bits_per_byte_ratio": after / before if before else math.nan,
        "byte_perplexity": _exp(after / num_bytes),
        "word_perplexity": _exp(after / num_words),
        "num_documents": len(records),
        "num_bytes": num_bytes,
        "num_untrained": sum(record.status == "untrained" for record in records),
        "num_with_near_copies": sum(bool(record.near_copies) for record in records),
        "num_with_own_neighbors": sum(bool(record.own_neighbors) for record in records),
        "num_partial": sum(bool(record.missing_shards) for record in records),
        **{f"seconds_{phase}": sum(record.seconds[phase] for record in records) for phase in SECONDS},
        "tokens_trained_per_second": _tokens_per_second(records, "num_trained_tokens", "train"),
        "tokens_scored_per_second": _tokens_per_second(records, "num_scored_tokens", "score"),
    }


def _tokens_per_second(records: list[DocumentRecord], name: str, phase: str) -> float:
    seconds = sum(record.seconds[phase] for record in records)
    return sum(getattr(record, name) for record in records) / seconds if seconds else 0.0


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
