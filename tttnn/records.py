"""One record per test document, the journal that keeps them, and the figures that pool them."""

import glob
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tttnn.corpus import Document
from tttnn.retriever import NeighborRetriever, Retriever
from tttnn.training_args import TestTimeTrainingArguments


JOURNAL_VERSION = 1
# Fields of `Trainer` on which a number depends, beside our own but for those that only say where things go.
TRAINER_SETTINGS = (
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("warmup_steps", "lr_scheduler_kwargs", "seed", "bf16", "fp16"),
)
NOT_SETTINGS = ("output_dir", "text_column", "per_device_eval_batch_size", "ddp_timeout", "save_strategy")


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
            `"trained"`, or `"untrained"` where nothing was retrieved; then `error` says why.
        error (`str`, *optional*):
            Why it is untrained.
        nll (`list[float]`):
            Negative log-likelihood of the scored text in nats: before training, then after each neighbor where every
            one is scored, else after the last.
        neighbor_ids (`list[int]`):
            Rows of the index that were trained on, in order.
        distances (`list[float]`):
            Their squared L2 distances to the query.
        overlaps (`list[float]`):
            Their overlaps with the scored text (see `tttnn.selection.overlap`).
        near_copies (`list[int]`):
            Ids of the neighbors that nearly copy the scored text, dropped ones included.
        train_loss (`list[float]`):
            Mean loss per token of each neighbor at the time of its step, in nats; one pass after another. NaN for a
            neighbor without a target.
        seconds (`dict[str, float]`):
            Time in the phases `retrieve`, `train` and `score`.
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
    neighbor_ids: list[int] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    near_copies: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"retrieve": 0.0, "train": 0.0, "score": 0.0})

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

    def to_json(self) -> str:
        """Write the record as a line of JSON, with null for NaN."""
        return json.dumps(_finite(asdict(self)), ensure_ascii=False, allow_nan=False, default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> "DocumentRecord":
        """Read what `to_json` wrote."""
        row = json.loads(line)
        for name in ("train_loss", "distances"):
            row[name] = [math.nan if value is None else value for value in row[name]]
        return cls(**row)


def _finite(value: Any) -> Any:  # noqa: ANN401
    """Put None in the place of numbers that JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(text: str) -> str:
    """Identify a text (`str`) by 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def nll_matrix(records: list[DocumentRecord]) -> np.ndarray:
    """
    Lay the scores of documents side by side.

    Args:
        records (`list[DocumentRecord]`):
            One per document.

    Returns:
        `np.ndarray`: float64 of shape `(len(records), points)`, nats; shorter rows carry their last value forward.
    """
    points = max((len(record.nll) for record in records), default=0)
    rows = [record.nll + [record.nll[-1]] * (points - len(record.nll)) for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), points)


def summarize(records: list[DocumentRecord]) -> dict[str, float]:
    """
    Pool records into metrics: sums are pooled, never means.

    Args:
        records (`list[DocumentRecord]`):
            Every document, untrained ones included.

    Returns:
        `dict[str, float]`: `bits_per_byte_before`, `bits_per_byte`, their ratio, `byte_perplexity`, `word_perplexity`,
        counts, and seconds by phase.

    Raises:
        `ValueError`: If the documents have no byte between them.
    """
    num_bytes = sum(record.num_bytes for record in records)
    if num_bytes == 0:
        raise ValueError(
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
        **{
            f"seconds_{phase}": sum(record.seconds[phase] for record in records)
            for phase in ("retrieve", "train", "score")
        },
    }


def run_settings(
    args: TestTimeTrainingArguments,
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    retriever: Retriever | None,
) -> dict[str, Any]:
    """
    Say what the numbers of a run depend on, for its journal.

    Args:
        args (`TestTimeTrainingArguments`):
            The trainer's arguments.
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        retriever (`Retriever`, *optional*):
            Where neighbors come from; the digest of its index is taken if it is a `NeighborRetriever`.

    Returns:
        `dict[str, Any]`: by name.
    """
    names = [name for name in TestTimeTrainingArguments.__annotations__ if name not in NOT_SETTINGS]
    # a sample of each tensor tells a model from another of the same name, at no cost to speak of
    samples = [weight.detach().flatten()[:: max(1, weight.numel() // 64)].tolist() for weight in model.parameters()]
    return {
        **{name: getattr(args, name) for name in (*names, *TRAINER_SETTINGS)},
        "model": model.config._name_or_path,
        "weights": digest(repr(samples)),
        "tokenizer": processing_class.name_or_path,
        "index": retriever.index.digest if isinstance(retriever, NeighborRetriever) else None,
    }


def check_same(record: DocumentRecord, document: Document) -> None:
    """
    Make sure that a record from a journal is of the document that now has its index.

    Args:
        record (`DocumentRecord`):
            From the journal.
        document (`Document`):
            From the data set.

    Raises:
        `ValueError`: If their texts differ.
    """
    if record.digest != digest(document.text):
        raise ValueError(
            f"Document {record.index} ('{document.id}') is not the one in the journal ('{record.id}'): the data set "
            "has changed. Choose another folder, or remove the journal."
        )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


class Journal:
    """
    Records on disk, a JSON line each, written as documents are finished and read again on the next start.

    The first line holds the settings of the run; a journal is only gone on with under the same settings. Each process
    writes a file of its own, and all are read.

    Args:
        path (`str` or `Path`):
            The file of process 0; process 1 writes `NAME.rank1.jsonl` beside it, and so on.
        rank (`int`, *optional*, defaults to `0`):
            Number of this process.
    """

    def __init__(self, path: str | Path, rank: int = 0) -> None:
        self.first = Path(path)
        self.path = self.first if rank == 0 else self.first.with_name(f"{self.first.stem}.rank{rank}.jsonl")
        self._file: FileIO | None = None

    def open(self, settings: dict[str, Any]) -> dict[int, DocumentRecord]:
        """
        Begin a journal, or go on with one.

        Args:
            settings (`dict[str, Any]`):
                What the numbers depend on; JSON-able.

        Returns:
            `dict[int, DocumentRecord]`: the documents that are done, by index.

        Raises:
            `ValueError`: If the journal was written under other settings, or is not a journal.
        """
        settings = json.loads(json.dumps(settings, default=str))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done: dict[int, DocumentRecord] = {}
        ranks = self.first.parent.glob(f"{glob.escape(self.first.stem)}.rank*.jsonl")
        for path in [self.first, *sorted(ranks)]:
            if path.is_file():
                done |= {record.index: record for record in self._read(path, settings)}
        content = self.path.read_bytes() if self.path.is_file() else b""
        # a line cut by a kill is not there: the document is done again
        whole = content[: content.rfind(b"\n") + 1] if content.count(b"\n") > 1 else b""
        # unbuffered: after a failed write nothing is left to fail again on closing
        file = self._file = self.path.open("r+b" if content else "wb", buffering=0)
        file.seek(len(whole))
        file.truncate()
        if not whole:
            self._write(json.dumps({"tttnn_journal": JOURNAL_VERSION, "settings": settings}))
        return done

    def _read(self, path: Path, settings: dict[str, Any]) -> list[DocumentRecord]:
        header, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
        if not header or not lines:
            return []  # nothing is done, so nothing to protect
        try:
            first = json.loads(header)
            theirs = first["settings"]
            if first["tttnn_journal"] != JOURNAL_VERSION:
                raise ValueError(f"version {first['tttnn_journal']}")
            records = [DocumentRecord.from_json(line) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is no journal of this version of tttnn ({error!r}). Move it away.") from None
        different = [name for name in {**theirs, **settings} if theirs.get(name) != settings.get(name)]
        if different:
            name = different[0]
            raise ValueError(
                f"'{path}' was written with other settings: `{name}` was {theirs.get(name)!r} and is now "
                f"{settings.get(name)!r} (different: {', '.join(different)}). Choose another folder, or remove it."
            )
        return records

    def append(self, record: DocumentRecord) -> None:
        """
        Add a finished document.

        Args:
            record (`DocumentRecord`):
                Written at once.

        Raises:
            `OSError`: If the disk is full or the file cannot be written; what was written before stays readable.
        """
        self._write(record.to_json())

    def _write(self, line: str) -> None:
        if self._file is None:
            raise RuntimeError("The journal is not open.")
        try:
            rest = line.encode("utf-8") + b"\n"
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"The journal '{self.path}' could not be written ({error.strerror}). Its finished documents are kept: "
                "make room and start again to go on",
            ) from error

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file is not None:
            self._file.close()
