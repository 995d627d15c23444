"""The command that evaluates a model."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tttnn.errors import InputError
from tttnn.helptext import Parser


if TYPE_CHECKING:
    from tttnn.adaptation import TestTimeTrainingArguments
    from tttnn.documents import Document


DESCRIPTION = (
    "Adapt a model to each test document by one step on each of its neighbors, or by another method, and report bits "
    "per byte before and after. Every finished document goes into a journal in the output folder; an interrupted run "
    "resumes when it is started again. For several processes: torchrun --nproc-per-node N -m tttnn evaluate ..."
)


def add_evaluate(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn evaluate` to the list of commands; its options depend on the method, and have another parser."""
    commands.add_parser("evaluate", help="adapt a model to each test document, and report bits per byte")


def evaluate(argv: Sequence[str]) -> None:
    """Run `tttnn evaluate` with the words after it."""
    from tttnn.documents import read_documents
    from tttnn.evaluation import EvaluateArguments, evaluate_documents, parse_evaluation
    from tttnn.report import document_table, import_figure, plot_curve, pooled_line

    evaluation = parse_evaluation(EvaluateArguments, argv, prog="tttnn evaluate", description=DESCRIPTION)
    inputs, chosen_on, args = evaluation.inputs, evaluation.validation, evaluation.args
    # what is missing at the end is told at the beginning
    _check_loggers(args)
    if args.score_every_neighbor:
        import_figure()

    def read(
        names: str | list[str], limit: int | None, revision: str | None = None, config: str | None = None
    ) -> "list[Document]":
        columns = (args.text_column, inputs.id_column)
        return list(read_documents(names, *columns, inputs.split, revision, limit=limit, dataset_config=config))

    if chosen_on.validation_limit is not None and not chosen_on.validation:
        raise InputError("`--validation-limit` was passed without `--validation`. Name the validation documents.")
    documents = read(inputs.dataset, inputs.limit, inputs.dataset_revision, inputs.dataset_config)
    validation = read(chosen_on.validation, chosen_on.validation_limit) if chosen_on.validation else []
    folder = Path(args.output_dir or ".")
    outcomes = evaluate_documents(evaluation, documents, validation)
    if not outcomes[0].is_main:
        return
    for outcome in outcomes:
        if len(outcomes) > 1:
            print(f"{outcome.name}:")
        print(document_table(outcome.records) if len(documents) <= 100 else pooled_line(outcome.records))
        if args.score_every_neighbor:
            print(plot_curve(outcome.records, folder / (outcome.name.replace("eval", "curve", 1) + ".png")))
    print(f"The results are in {folder}. For a report: tttnn report {shlex.quote(str(folder))}")


def _check_loggers(args: "TestTimeTrainingArguments") -> None:
    """Refuse a logger that transformers does not know, or whose package is missing."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"`--report-to` names a logger that cannot be used here: {error}") from error
