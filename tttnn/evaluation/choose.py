"""Settings that are chosen on validation documents, never on those that are reported."""

import copy
import math
from collections.abc import Callable
from typing import Any

from transformers.utils import logging

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.adaptation.steps import NotFiniteError
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.methods import KnnArguments, best_candidate
from tttnn.records import digest, summarize


logger = logging.get_logger(__name__)


def check_validation(
    learning_rates: list[float], own: dict[str, Any], documents: list[Document], validation: list[Document]
) -> None:
    """
    Make sure that what is chosen is chosen on documents that are not tested on.

    Args:
        learning_rates (`list[float]`):
            To choose from, if any.
        own (`dict[str, Any]`):
            What the method has of its own.
        documents (`list[Document]`):
            Test documents.
        validation (`list[Document]`):
            Validation documents.

    Raises:
        `ValueError`: If that is not so.
    """
    chooses = bool(learning_rates) or ("knn" in own and len(own["knn"].candidates) > 1)
    if chooses and not validation:
        options = "one `--knn_lambda` and one `--knn_temperature`" if "knn" in own else "`--learning_rate`"
        raise InputError(
            f"There is something to choose, and it is chosen on validation documents. Pass "
            f"`--validation`, or set {options}."
        )
    if validation and not chooses:
        raise InputError(
            "Validation documents were passed, but there is nothing to choose on them. Pass "
            "`--learning_rates` with several rates, or leave them out."
        )
    tested = {digest(document.text) for document in documents}
    both = next((document for document in validation if digest(document.text) in tested), None)
    if both is not None:
        raise InputError(
            f"The validation document '{both.id}' is also a test document. Choose settings on other documents than "
            "those that are reported."
        )


def choose(
    make_trainer: Callable[[TestTimeTrainingArguments, dict[str, Any]], Any],
    learning_rates: list[float],
    args: TestTimeTrainingArguments,
    own: dict[str, Any],
    validation: list[Document],
) -> tuple[TestTimeTrainingArguments, dict[str, Any]]:
    """
    Choose the learning rate, or the weights of kNN-LM, by the pooled score of validation documents.

    Args:
        make_trainer (`Callable`):
            Makes the method's trainer of `args` and `own`.
        learning_rates (`list[float]`):
            To choose from; not used for kNN-LM.
        args (`TestTimeTrainingArguments`):
            How.
        own (`dict[str, Any]`):
            What the method has of its own.
        validation (`list[Document]`):
            Validation documents.

    Returns:
        `tuple`: `args` and `own` with what scored best.

    Raises:
        `ValueError`: If training diverges at every rate, or no validation document is trained on.
    """
    tell = logger.warning if args.process_index == 0 else logger.debug
    if "knn" in own:
        return args, {**own, "knn": _choose_weights(make_trainer(args, own), own["knn"], validation, tell)}
    scores: dict[float, float] = {}
    for rate in learning_rates:
        trial = _with_rate(args, rate)
        trial.score_every_neighbor = False  # a choice needs no curve
        trainer = make_trainer(trial, own)
        try:
            trainer.evaluate(validation, metric_key_prefix=f"validation-{rate:g}")
        except NotFiniteError as error:
            tell(f"The learning rate {rate:g} is out: {error}")
            scores[rate] = math.inf
            continue
        if not any(record.num_trained_tokens for record in trainer.records):
            raise InputError(
                f"No step was taken on any of the {len(validation)} validation documents, so there is nothing to "
                "choose by. Check the index and the filters, or pass longer documents."
            )
        scores[rate] = summarize(trainer.records)["bits_per_byte"]
    best = min(scores, key=scores.__getitem__)
    if scores[best] == math.inf:
        raise InputError(f"Training diverged at every one of the learning rates {learning_rates}. Pass lower ones.")
    listed = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in scores.items())
    tell(
        f"Chosen on {len(validation)} validation documents: learning rate {best:g} (bits per byte by rate: {listed})."
    )
    if best in (min(scores), max(scores)) and len(scores) > 2:
        tell("That is the end of the rates that were tried: one beyond it may be better still.")
    return _with_rate(args, best), own


def _choose_weights(
    trainer: Any,  # noqa: ANN401
    knn: KnnArguments,
    validation: list[Document],
    tell: Callable[[str], None],
) -> KnnArguments:
    trainer.evaluate(validation, metric_key_prefix="validation")
    best = best_candidate(trainer.records, knn)
    weight, temperature = best.knn_lambda[0], best.knn_temperature[0]
    tell(f"Chosen on {len(validation)} validation documents: lambda {weight}, temperature {temperature}.")
    if weight == max(knn.knn_lambda) or temperature in (min(knn.knn_temperature), max(knn.knn_temperature)):
        tell("That is at the end of what was tried: values beyond it may be better still.")
    return best


def _with_rate(args: TestTimeTrainingArguments, rate: float) -> TestTimeTrainingArguments:
    args = copy.copy(args)
    args.learning_rate = rate
    return args
