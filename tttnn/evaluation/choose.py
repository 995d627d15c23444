"""Settings that are chosen on validation documents, never on those that are reported."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

from transformers.utils import logging

from tttnn.adaptation import Method, NotFiniteError, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.methods import KnnLM, best_candidate
from tttnn.records import digest, summarize


logger = logging.get_logger(__name__)

MakeTrainer = Callable[[TestTimeTrainingArguments, Method], TestTimeTrainer]


def check_validation(
    rates: list[float], method: Method, documents: list[Document], validation: list[Document]
) -> None:
    """Make sure that what is chosen is chosen on documents that are not tested on."""
    weighs = isinstance(method, KnnLM)
    chooses = bool(rates) or (isinstance(method, KnnLM) and len(method.knn.candidates) > 1)
    if chooses and not validation:
        options = "one `--knn-lambda` and one `--knn-temperature`" if weighs else "`--learning-rate`"
        raise InputError(
            "There is something to choose, and it is chosen on validation documents. Pass `--validation`, or set "
            f"{options}."
        )
    if validation and not chooses:
        raise InputError(
            "Validation documents were passed, but there is nothing to choose on them. Pass `--learning-rates` with "
            "several rates, or leave them out."
        )
    tested = {digest(document.text) for document in documents}
    both = next((document for document in validation if digest(document.text) in tested), None)
    if both is not None:
        raise InputError(
            f"The validation document '{both.id}' is also a test document. Choose settings on other documents than "
            "those that are reported."
        )


def choose(
    make_trainer: MakeTrainer,
    rates: list[float],
    args: TestTimeTrainingArguments,
    method: Method,
    validation: list[Document],
) -> tuple[TestTimeTrainingArguments, Method]:
    """
    Choose the learning rate, or the weights of kNN-LM, by the pooled score of validation documents.

    Training that diverges at a rate rules the rate out; if it does so at every rate, that is an error.
    """
    tell = logger.warning if args.process_index == 0 else logger.debug
    if isinstance(method, KnnLM):
        return args, _choose_weights(make_trainer(args, method), method, validation, tell)
    scores: dict[float, float] = {}
    for rate in rates:
        trial = _with_rate(args, rate)
        trial.score_every_neighbor = False  # a choice needs no curve
        trainer = make_trainer(trial, method)
        try:
            trainer.evaluate(validation, metric_key_prefix=f"validation-{rate:g}")  # type: ignore[arg-type]
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
        raise InputError(f"Training diverged at every one of the learning rates {rates}. Pass lower ones.")
    listed = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in scores.items())
    tell(
        f"Chosen on {len(validation)} validation documents: learning rate {best:g} (bits per byte by rate: {listed})."
    )
    if best in (min(scores), max(scores)) and len(scores) > 2:
        tell("That is the end of the rates that were tried: one beyond it may be better still.")
    return _with_rate(args, best), method


def _choose_weights(
    trainer: TestTimeTrainer, method: KnnLM, validation: list[Document], tell: Callable[[str], None]
) -> KnnLM:
    knn = method.knn
    trainer.evaluate(validation, metric_key_prefix="validation")  # type: ignore[arg-type]
    best = best_candidate(trainer.records, knn)
    weight, temperature = best.knn_lambda[0], best.knn_temperature[0]
    tell(f"Chosen on {len(validation)} validation documents: lambda {weight}, temperature {temperature}.")
    if weight == max(knn.knn_lambda) or temperature in (min(knn.knn_temperature), max(knn.knn_temperature)):
        tell("That is at the end of what was tried: values beyond it may be better still.")
    return replace(method, knn=best)


def _with_rate(args: TestTimeTrainingArguments, rate: float) -> TestTimeTrainingArguments:
    args = copy.copy(args)
    args.learning_rate = rate
    return args
