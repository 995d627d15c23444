"""Settings that are chosen on documents of the index itself, so that no test document is touched."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tttnn.adaptation import (
    CurveRow,
    JournalCallback,
    Method,
    NotFiniteError,
    TestTimeTrainer,
    TestTimeTraining,
    TestTimeTrainingArguments,
    Tuning,
)
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.files import write_json
from tttnn.index import Index
from tttnn.intervals import Bootstrap, PairedScores
from tttnn.methods import Context, ContextAndTraining, Prefix
from tttnn.records import DocumentRecord, nll_matrix
from tttnn.retrieval import NeighborRetriever


logger = logging.get_logger(__name__)

MIN_TOKENS = 64  # of a document that is sampled
WIDE = 200  # candidates, because passages of the document itself may fill the first places
LOOKED_AT = 100  # rows that are looked at for each document that is wanted
CONTEXT_RATE = 2e-5  # of training beside neighbors in context
TUNED = "tuned.json"


def sample_documents(
    index: Index, processing_class: PreTrainedTokenizerBase, num_documents: int, max_bytes: int, seed: int
) -> list[Document]:
    """Draw rows of an index by a seed, one of each document, cut to `max_bytes`; short ones are passed over."""
    size = len(index)
    places = random.Random(seed).sample(range(size), min(size, LOOKED_AT * num_documents))
    sampled: dict[tuple[str, str], Document] = {}
    for start in range(0, len(places), num_documents):
        rows = [index.row_at(place) for place in places[start : start + num_documents]]
        for document in index.documents(rows):
            text = document.text.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
            if len(_encode(processing_class, text)) >= MIN_TOKENS:
                home = document.id, repr(document.value("source"))
                sampled.setdefault(home, Document(document.id, text, document.metadata))
        if len(sampled) >= num_documents:
            break
    return list(sampled.values())[:num_documents]


def tune_on_index(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    retriever: NeighborRetriever,
    args: TestTimeTrainingArguments,
    num_documents: int = 24,
    max_document_bytes: int = 4000,
    learning_rates: Sequence[float] = (2e-5, 1e-4),
    output: str | Path | None = None,
) -> Tuning:
    """
    Measure methods on documents of the index, and choose the rate, the number of neighbors and the mixture of `ttt`.

    A document is a row of the index. Its first half is the query, in context, and the rest is scored. Neighbors with
    its id, which are the row itself and passages of the same document, and near-copies are dropped. The methods are
    `prefix`, `context`, `ttt` after every neighbor at each learning rate, and `context+ttt`, each but the first with
    and without the mixture `"both"`. Each has a journal in `args.output_dir`, from which an interrupted run resumes.

    Args:
        model (`PreTrainedModel`):
            The model.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        retriever (`NeighborRetriever`):
            Of the index, with whole rows as neighbors.
        args (`TestTimeTrainingArguments`):
            `num_neighbors` is the largest number that is tried; `seed` draws the documents.
        num_documents (`int`, *optional*, defaults to `24`):
            Rows drawn, of at least 64 tokens each.
        max_document_bytes (`int`, *optional*, defaults to `4000`):
            Longer rows are cut, to a whole character.
        learning_rates (`Sequence[float]`, *optional*, defaults to `(2e-5, 1e-4)`):
            Rates to choose from.
        output (`str` or `Path`, *optional*):
            The file to write. By default `tuned.json` in `args.output_dir`.

    Returns:
        `Tuning`: what was measured and chosen; the file holds the same.

    Raises:
        `ValueError`: If a value is out of range, the index has too few long rows, or training diverges at every rate.
    """
    _check(retriever, args, num_documents, max_document_bytes, learning_rates)
    index = retriever.index
    documents = sample_documents(index, processing_class, num_documents, max_document_bytes, args.seed)
    if len(documents) < 2:
        raise InputError(
            f"The index has {len(documents)} documents of at least {MIN_TOKENS} tokens among the rows looked at, "
            "and at least 2 are needed. Index longer documents, or raise `max_document_bytes`."
        )
    if len(documents) < num_documents and args.process_index == 0:
        logger.warning(f"Only {len(documents)} documents of the index have {MIN_TOKENS} tokens or more.")
    args = replace(
        args,
        exclude="id",
        drop_near_copies=True,
        top_k=min(len(retriever), max(WIDE, 2 * args.num_neighbors)),
        score_every_neighbor=False,
    )

    def run(method: Method, name: str = "", rate: float | None = None, every: bool = False) -> TestTimeTrainer:
        trial = copy.copy(args)
        trial.learning_rate = args.learning_rate if rate is None else rate
        trial.score_every_neighbor = every
        trial.mix = "none" if isinstance(method, Prefix) else "both"  # a record has the scores without it too
        trainer = TestTimeTrainer(
            model, trial, retriever, processing_class=processing_class, method=method, callbacks=[JournalCallback()]
        )
        trainer.evaluate(documents, metric_key_prefix=f"tune-{name or method.name}")  # type: ignore[arg-type]
        return trainer

    base = run(Prefix()).records
    shared = {"num_neighbors": args.num_neighbors, "max_length": args.max_length}
    curve = [_row("prefix", {}, base, base), *_rows("context", shared, base, run(Context()).records)]
    for rate in learning_rates:
        try:
            trainer = run(TestTimeTraining(), f"ttt-{rate:g}", rate, every=True)
        except NotFiniteError as error:
            if args.process_index == 0:
                logger.warning(f"The learning rate {rate:g} is out: {error}")
            continue
        curve += _rows_of_training(trainer, retriever, base, {**shared, "learning_rate": rate})
    rows = [row for row in curve if row.method == "ttt"]
    if not rows:
        raise InputError(f"Training diverged at every one of the learning rates {[*learning_rates]}. Pass lower ones.")
    both = {**shared, "learning_rate": CONTEXT_RATE}
    try:
        curve += _rows("context+ttt", both, base, run(ContextAndTraining(), rate=CONTEXT_RATE).records)
    except NotFiniteError as error:
        if args.process_index == 0:
            logger.warning(f"The method context+ttt, at the learning rate {CONTEXT_RATE:g}, is out: {error}")
    best = min(rows, key=lambda row: row.bits_per_byte)
    path = Path(args.output_dir or ".", TUNED) if output is None else Path(output)
    versions = {"tttnn": version("tttnn"), "torch": torch.__version__, "transformers": transformers.__version__}
    name = model.config._name_or_path or None
    tuning = Tuning(path.name, name, index.digest, len(documents), args.seed, versions, best.settings, curve)
    if args.process_index == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, tuning.to_json())
    return tuning


def _check(
    retriever: NeighborRetriever,
    args: TestTimeTrainingArguments,
    num_documents: int,
    max_document_bytes: int,
    learning_rates: Sequence[float],
) -> None:
    """Refuse what cannot be tuned, before the work."""
    if num_documents < 2:
        raise InputError(f"`num_documents` is {num_documents}. Pass at least 2: an interval is over documents.")
    if max_document_bytes < 1:
        raise InputError(f"`max_document_bytes` is {max_document_bytes}. Pass at least 1.")
    if not learning_rates:
        raise InputError("There is no learning rate to try. Pass at least one.")
    for rate in learning_rates:
        if not 0 < rate < math.inf:
            raise InputError(f"`learning_rates` has {rate}. Pass rates above 0.")
    if len({f"{rate:g}" for rate in learning_rates}) < len(learning_rates):
        raise InputError(f"`learning_rates` has a rate twice: {[*learning_rates]}. Pass each one once.")
    if retriever.passage_length is not None:
        raise InputError("The retriever has a `passage_length`. Tune on whole rows: leave it out.")
    if args.gradient_accumulation_steps != 1 or args.num_train_epochs != 1:
        raise InputError(
            "A curve has a point for each neighbor. Leave `gradient_accumulation_steps` and `num_train_epochs` at 1."
        )
    if len(retriever) <= args.num_neighbors:
        raise InputError(
            f"The index holds {len(retriever)} rows, and each needs {args.num_neighbors} others as neighbors. "
            f"Pass at most {len(retriever) - 1} as `num_neighbors`."
        )


def _rows_of_training(
    trainer: TestTimeTrainer, retriever: NeighborRetriever, base: list[DocumentRecord], settings: dict[str, Any]
) -> list[CurveRow]:
    """Give a row for each number of neighbors, from one run that scored after each."""
    records, number = trainer.records, trainer.args.num_neighbors
    # after each neighbor the tokens trained by then; a document with fewer neighbors stays at its last
    trained = np.zeros((len(records), number + 1))
    for place, record in enumerate(records):
        neighbors = retriever.index.documents(record.neighbor_ids) if record.neighbor_ids else []
        lengths = [_num_trained(trainer, neighbor.text) for neighbor in neighbors]
        trained[place, 1 : len(lengths) + 1] = np.cumsum(lengths)
        trained[place, len(lengths) + 1 :] = sum(lengths)
    return [
        row
        for point in range(1, number + 1)
        for row in _rows("ttt", {**settings, "num_neighbors": point}, base, records, point, trained[:, point])
    ]


def _num_trained(trainer: TestTimeTrainer, text: str) -> int:
    """Count the tokens of a neighbor that are trained on."""
    number, chunks = len(_encode(trainer.processing_class, text)), trainer.args.chunks_per_neighbor
    return number if chunks is None else min(number, int(chunks) * trainer.max_length)


def _rows(method: str, settings: dict[str, Any], *measured: Any) -> list[CurveRow]:
    """Give a row without a mixture and one with it, of records that hold both."""
    return [_row(method, {**settings, "mix": mix}, *measured) for mix in ("none", "both")]


def _row(
    method: str,
    settings: dict[str, Any],
    base: list[DocumentRecord],
    records: list[DocumentRecord],
    point: int = -1,
    trained: np.ndarray | None = None,
) -> CurveRow:
    """Pool the scores of one point of the records, beside those of `prefix`, and say what it costs."""
    scores = nll_matrix([record.unmixed() for record in records] if settings.get("mix") == "none" else records)
    after = scores[:, min(point, scores.shape[1] - 1)]
    before, num_bytes = nll_matrix(base)[:, -1], np.array([record.num_bytes for record in base], dtype=np.float64)
    if trained is None:
        trained = np.array([record.num_trained_tokens for record in records], dtype=np.float64)
    read, seconds = [], []
    for record, original, tokens in zip(records, base, trained.tolist(), strict=True):
        # the score before is that of `prefix`; a method without context reads as much again for each later score
        is_beside = method in ("context", "context+ttt") and record.num_read_tokens > original.num_read_tokens
        read.append(record.num_read_tokens - original.num_read_tokens if is_beside else original.num_read_tokens)
        spent = record.seconds
        train = spent["train"] * tokens / record.num_trained_tokens if record.num_trained_tokens else 0.0
        seconds.append(spent["retrieve"] + train + spent["score"] * read[-1] / record.num_read_tokens)
    bits = num_bytes.sum() * math.log(2)
    low, high = Bootstrap().interval({"all": PairedScores(before, after, num_bytes, num_bytes)})
    return CurveRow(
        method,
        settings,
        float(after.sum() / bits),
        float((after.sum() - before.sum()) / bits),
        [low, high],
        float(np.mean(read)),
        float(trained.mean()),
        float(np.mean(seconds)),
    )


def _encode(processing_class: PreTrainedTokenizerBase, text: str) -> list[int]:
    return processing_class(text, add_special_tokens=False, verbose=False)["input_ids"]
