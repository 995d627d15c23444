"""What `tttnn evaluate` and `examples/pile_eval.py` share: loading, choices on validation documents, runs."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging

from tttnn.adaptation import (
    JournalCallback,
    Method,
    TestTimeCallback,
    TestTimeTrainer,
    TestTimeTrainingArguments,
    TrainableArguments,
    make_trainable,
    split_document,
    warn_of_counted_ids,
)
from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.evaluation.choose import check_validation, choose
from tttnn.evaluation.loading import load_trainer_arguments
from tttnn.evaluation.options import Budget, Evaluation
from tttnn.evaluation.precision import precision_of, settle_precision, with_precision
from tttnn.files import write_json
from tttnn.journal import EVALUATION, RANDOM_DISTANCES
from tttnn.methods import BudgetChoice, choose_budget
from tttnn.neighbors import Retriever
from tttnn.records import DocumentRecord, digest
from tttnn.retrieval import NeighborRetriever


logger = logging.get_logger(__name__)

BUDGET = "budget.json"  # what a budget chose, so that a resumed run has the same settings
MAX_QUERIES = 200  # for which distances to random documents are measured


class Outcome(NamedTuple):
    """
    One evaluation of the test documents.

    Args:
        name (`str`):
            `"eval"`, or with a part of the index `"eval-fraction-0.1"`: the journal is `journal-NAME.jsonl`.
        records (`list[DocumentRecord]`):
            One per document.
        metrics (`dict[str, Any]`):
            What `trainer.evaluate` gave.
        is_main (`bool`):
            Whether this is the process that prints.
    """

    name: str
    records: list[DocumentRecord]
    metrics: dict[str, Any]
    is_main: bool


def evaluate_documents(
    evaluation: Evaluation[Any], documents: list[Document], validation: list[Document]
) -> list[Outcome]:
    """
    Choose what is to be chosen on validation documents, and evaluate a method on test documents.

    Args:
        evaluation (`Evaluation`):
            What is evaluated, and how (see `parse_evaluation`).
        documents (`list[Document]`):
            Test documents.
        validation (`list[Document]`):
            Validation documents; none for a method with nothing to choose.

    Returns:
        `list[Outcome]`: one, or one for each part of the index.

    Raises:
        `ValueError`: If there is something to choose and no validation document, or the other way around, or a
            document is on both sides.
    """
    warn_of_counted_ids(documents, evaluation.args.exclude)
    if evaluation.budget is None:
        check_validation(evaluation.rates, evaluation.method, documents, validation)
    loaded = load_trainer_arguments(evaluation)
    trainable = evaluation.method.trainable or TrainableArguments()
    loaded["model"] = make_trainable(loaded["model"], trainable, evaluation.args.seed)
    evaluation = settle_precision(evaluation, loaded["model"], loaded["processing_class"], documents)
    files = {}
    if evaluation.budget is not None:
        evaluation, files[BUDGET] = settle_budget(
            evaluation, evaluation.budget, loaded["model"], loaded["processing_class"]
        )
        check_validation(evaluation.rates, evaluation.method, documents, validation)
    index, rates, args, method = evaluation.index, evaluation.rates, evaluation.args, evaluation.method
    whole = loaded.pop("retriever")
    if not method.retrieves:
        whole = None  # it was loaded for a method that a budget did not choose

    def make_trainer(
        args: TestTimeTrainingArguments, method: Method, retriever: Retriever | None = whole
    ) -> TestTimeTrainer:
        callbacks: list[TrainerCallback] = [JournalCallback(), FilesCallback(files)]
        return TestTimeTrainer(args=args, method=method, retriever=retriever, callbacks=callbacks, **loaded)

    retrievers = {"eval": whole}
    if index is not None and index.index_fraction:
        retrievers = _subsets(whole, index.index_fraction, args.top_k or args.num_neighbors)
    if validation:
        args, method = choose(make_trainer, rates, args, method, validation)
    files[EVALUATION] = _arguments(evaluation, len(documents), len(validation))
    outcomes = {}
    for name in _earlier_first(retrievers, Path(args.output_dir or ".")):
        trainer = make_trainer(args, method, retrievers[name])
        metrics = trainer.evaluate(documents, metric_key_prefix=name)  # type: ignore[arg-type]
        trainer.save_metrics(name, metrics)
        outcomes[name] = Outcome(name, trainer.records, metrics, trainer.is_world_process_zero())
    # distances of passages cannot be compared with those of random documents
    if whole is not None and whole.passage_length is None and args.process_index == 0:
        _write_random_distances(whole, loaded["processing_class"], documents, args)
    return [outcomes[name] for name in retrievers]


def _write_random_distances(
    whole: NeighborRetriever,
    processing_class: PreTrainedTokenizerBase,
    documents: list[Document],
    args: TestTimeTrainingArguments,
) -> None:
    """Measure how far random documents are; a report shows them beside the distances of neighbors."""
    first = documents[:MAX_QUERIES]
    queries = [split_document(processing_class, document.text, args.query, args.cut)[0] for document in first]
    path = Path(args.output_dir or ".") / RANDOM_DISTANCES
    write_json(path, {"distances": whole.random_distances(queries)})


def _earlier_first(names: Iterable[str], folder: Path) -> list[str]:
    """Begin with what has a journal: if it is of another run, that is said before anything is written."""
    ordered = sorted(names, key=lambda name: not (folder / f"journal-{name}.jsonl").is_file())
    # a process that looks later may find a journal of this run
    return list(broadcast_object_list([ordered])[0])


class FilesCallback(TestTimeCallback):
    """
    Write files beside a journal when it has been opened and is of this run: not over those of another one.

    Args:
        files (`dict[str, dict[str, Any]]`):
            The contents by the name of the file, JSON-able.
    """

    def __init__(self, files: dict[str, dict[str, Any]]) -> None:
        self.files = files

    def on_evaluation_begin(self, args: TestTimeTrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Write the files, in one process."""
        if args.process_index == 0:
            for name, content in self.files.items():
                write_json(Path(args.output_dir or ".") / name, content)


def settle_budget(
    evaluation: Evaluation[Any],
    budget: Budget,
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
) -> tuple[Evaluation[Any], dict[str, Any]]:
    """
    Choose by the budget, or as an earlier start of the run did; all processes take the choice of the first.

    Gives what is evaluated then, and what an earlier start is known by: the content of its `budget.json`.
    """
    args, inputs, path = evaluation.args, evaluation.inputs, Path(evaluation.args.output_dir or ".") / BUDGET
    asked = {
        "model": model.config._name_or_path,
        "model_revision": inputs.model_revision,
        "dtype": inputs.dtype,
        "budget": budget.value,
        "methods": budget.methods,
        "curve": digest(repr(budget.curve)),
    }
    outcome: BudgetChoice | InputError
    try:
        # every process makes the choice: the probe then runs beside the others, as the run will
        outcome = _earlier_choice(path, asked) or choose_budget(
            budget.value, model, processing_class, args, budget.curve, budget.methods
        )
    except InputError as error:
        outcome = error
    # the refusal of the first too: a process that continued alone would wait for the others forever
    (outcome,) = broadcast_object_list([outcome])
    if isinstance(outcome, InputError):
        raise outcome
    if args.process_index == 0:
        logger.warning(outcome.reason)
    settled = with_precision(budget.settle(outcome), args.precision)  # options are parsed again
    return settled, {"asked": asked, **outcome._asdict()}


def _earlier_choice(path: Path, asked: dict[str, Any]) -> BudgetChoice | None:
    """Read what an earlier start of a run chose; refuse the choice of another run, whose journal is here too."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        before = content.pop("asked")
        choice = BudgetChoice(**content)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"'{path}' is damaged ({error}). Remove it; the budget then chooses again.") from error
    changed = [name for name, value in asked.items() if before.get(name) != value]
    if changed:
        name = changed[0]
        raise InputError(
            f"'{path}' is the choice of another run: its `{name}` was {before.get(name)!r}, and is {asked[name]!r} "
            "now. Choose another `--output-dir`, or remove the files of that run."
        )
    return choice


def _subsets(whole: NeighborRetriever, fractions: list[float], top_k: int) -> dict[str, NeighborRetriever]:
    """Draw parts of an index, and check before the work that each has at least `top_k` documents."""
    subsets = {f"eval-fraction-{fraction:g}": whole.subset(fraction) for fraction in fractions}
    for name, subset in subsets.items():
        if len(subset) < top_k:
            raise InputError(
                f"The part {name.rpartition('-')[2]} of the index has {len(subset)} documents, and {top_k} neighbors "
                "are wanted. Pass a larger fraction, or fewer neighbors."
            )
    return subsets


def _arguments(evaluation: Evaluation[Any], num_documents: int, num_validation: int) -> dict[str, Any]:
    """Say what is evaluated on what; a report shows it, and sees by the counts whether a run was interrupted."""
    arguments = asdict(evaluation.inputs) | (asdict(evaluation.index) if evaluation.index else {})
    arguments |= asdict(evaluation.validation) | {"learning_rates": evaluation.rates or None}
    arguments["precision"] = precision_of(vars(evaluation.args))
    arguments["prompt"] = evaluation.args.prompt
    return {
        "num_documents": num_documents,
        "num_validation_documents": num_validation,
        "arguments": {name: value for name, value in arguments.items() if value is not None},
    }
