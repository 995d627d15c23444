"""The precision of an evaluation, if it is left open: chosen once, for all processes and all starts of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tttnn.adaptation import PrecisionChoice, choose_precision
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.evaluation.options import Evaluation
from tttnn.journal import read_journal


logger = logging.get_logger(__name__)


def settle_precision(
    evaluation: Evaluation[Any],
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    documents: list[Document],
) -> Evaluation[Any]:
    """Choose the precision before the first document, or as an earlier start of the run did."""
    args = evaluation.args
    if args.precision != "auto":
        return evaluation
    # the first process alone reads: a folder that others do not share must not part them
    earlier = _earlier_precision(Path(args.output_dir or ".")) if args.process_index == 0 else None
    (choice,) = broadcast_object_list([earlier])
    if choice is None:
        # every process measures: the probe then runs beside the others, as the run will
        choice = _choose(evaluation, model, processing_class, documents)
        (choice,) = broadcast_object_list([choice])
    if args.process_index == 0:
        (logger.warning if choice.precision == "bf16" else logger.info)(choice.reason)
    return with_precision(evaluation, choice.precision)


def with_precision(evaluation: Evaluation[Any], precision: str | None) -> Evaluation[Any]:
    """Give the evaluation in a precision."""
    args = replace(evaluation.args, precision=precision)
    args.tuning = evaluation.args.tuning
    return replace(evaluation, args=args)


def precision_of(settings: dict[str, Any]) -> str:
    """Name the precision that settings of a run have, by the two flags that every journal holds."""
    return next((name for name in ("bf16", "fp16") if settings.get(name)), "float32")


def _choose(
    evaluation: Evaluation[Any],
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    documents: list[Document],
) -> PrecisionChoice:
    args = evaluation.args
    if args.mixed_precision in ("bf16", "fp16"):
        return PrecisionChoice(args.mixed_precision, f"Precision {args.mixed_precision}: the launcher asks for it.")
    # a budget may choose a method that trains
    trains = evaluation.method.trains or evaluation.budget is not None
    if evaluation.method.stays_in_float32 and evaluation.budget is None:
        return PrecisionChoice("float32", f"Precision float32: the method {evaluation.method.name} stays in it.")
    text = next((document.text for document in documents if document.text), "")
    return choose_precision(model, processing_class, args, text, trains=trains)


def _earlier_precision(folder: Path) -> PrecisionChoice | None:
    """Read in the journals which precision an earlier start of the run had."""
    for path in sorted([*folder.glob("journal-eval*.jsonl"), *folder.glob("journal-validation*.jsonl")]):
        try:
            settings, records = read_journal(path)
        except InputError:
            continue  # the same error is raised when the run opens this journal, in all processes
        if records:
            precision = precision_of(settings)
            return PrecisionChoice(precision, f"Precision {precision}: '{path}' is resumed, which has it.")
    return None
