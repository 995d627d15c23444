"""Settings that are chosen on validation documents, never on those that are reported."""

import copy
import math
from collections.abc import Callable

from transformers.utils import logging

from tttnn.adaptation import Method, NotFiniteError, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.records import DocumentRecord, digest, nll_matrix, summarize


logger = logging.get_logger(__name__)

MakeTrainer = Callable[[TestTimeTrainingArguments, Method], TestTimeTrainer]


def check_validation(
    rates: list[float], method: Method, documents: list[Document], validation: list[Document]
) -> None:
    """Make sure that what is chosen is chosen on documents that are not tested on."""
    varied = _varied(method)
    chooses = bool(rates or varied)
    if chooses and not validation:
        named = ["`--learning-rate`"] * bool(rates)
        options = " and ".join([*named, *(f"one `--{name.replace('_', '-')}`" for name in varied)])
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
    Choose the learning rate, and one of the method's candidates, by the pooled score of validation documents.

    Training that diverges at a rate rules the rate out; if it does so at every rate, that is an error.
    """
    tell = logger.warning if args.process_index == 0 else logger.debug
    if rates:
        args = _choose_rate(make_trainer, rates, args, method, validation, tell)
    if len(method.candidates()) > 1:
        method = _choose_candidate(make_trainer(args, method), method, validation, tell)
    return args, method


def _choose_rate(
    make_trainer: MakeTrainer,
    rates: list[float],
    args: TestTimeTrainingArguments,
    method: Method,
    validation: list[Document],
    tell: Callable[[str], None],
) -> TestTimeTrainingArguments:
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
    return _with_rate(args, best)


def _choose_candidate(
    trainer: TestTimeTrainer, method: Method, validation: list[Document], tell: Callable[[str], None]
) -> Method:
    trainer.evaluate(validation, metric_key_prefix="validation")  # type: ignore[arg-type]
    best = best_candidate(trainer.records, method.candidates())
    settings, at_end = best.settings(), []
    for name, values in _varied(method).items():
        if settings[name][0] in (min(values), max(values)) and len(values) > 2:
            at_end.append(name)
    chosen = ", ".join(f"{name} {settings[name][0]}" for name in _varied(method))
    tell(f"Chosen on {len(validation)} validation documents: {chosen}.")
    if at_end:
        tell(f"At the end of what was tried: {', '.join(at_end)}. A value beyond it may be better still.")
    return best


def best_candidate(records: list[DocumentRecord], candidates: list[Method]) -> Method:
    """Choose the candidate with the lowest sum of nll; a record has their scores after the score before."""
    if all(record.status == "untrained" for record in records):
        raise InputError(
            f"None of the {len(records)} validation documents could be adapted to, so there is nothing to choose by. "
            "Check the index and the filters."
        )
    return candidates[int(nll_matrix(records)[:, 1:].sum(axis=0).argmin())]


def _varied(method: Method) -> dict[str, list[float]]:
    """Give the values of each setting of which a method has several to choose from."""
    if len(method.candidates()) == 1:
        return {}
    return {name: value for name, value in method.settings().items() if isinstance(value, list) and len(value) > 1}


def _with_rate(args: TestTimeTrainingArguments, rate: float) -> TestTimeTrainingArguments:
    args = copy.copy(args)
    args.learning_rate = rate
    return args
