"""Evaluating a method on test documents."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.evaluation.options import Budget, EvaluateArguments, Evaluation, ModelArguments
    from tttnn.evaluation.parsing import parse_evaluation
    from tttnn.evaluation.pile import TEST_FRACTION, parse_tasks, pile_weights, select_documents, task_of
    from tttnn.evaluation.run import Outcome, evaluate_documents, load_model, load_trainer_arguments
    from tttnn.evaluation.tune import tune_on_index

__all__ = [
    "Budget",
    "EvaluateArguments",
    "Evaluation",
    "ModelArguments",
    "Outcome",
    "TEST_FRACTION",
    "evaluate_documents",
    "load_model",
    "load_trainer_arguments",
    "parse_evaluation",
    "parse_tasks",
    "pile_weights",
    "select_documents",
    "task_of",
    "tune_on_index",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "Budget": "options",
        "EvaluateArguments": "options",
        "ModelArguments": "options",
        "Evaluation": "options",
        "Outcome": "run",
        "TEST_FRACTION": "pile",
        "evaluate_documents": "run",
        "load_model": "run",
        "load_trainer_arguments": "run",
        "parse_evaluation": "parsing",
        "parse_tasks": "pile",
        "pile_weights": "pile",
        "select_documents": "pile",
        "task_of": "pile",
        "tune_on_index": "tune",
    },
)
