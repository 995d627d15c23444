"""Evaluating a method on test documents."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.evaluation.options import EvaluateArguments, Evaluation, parse_evaluation
    from tttnn.evaluation.run import Outcome, evaluate_documents

__all__ = ["EvaluateArguments", "Evaluation", "Outcome", "evaluate_documents", "parse_evaluation"]

__getattr__, __dir__ = door(
    __name__,
    {
        "EvaluateArguments": "options",
        "Evaluation": "options",
        "Outcome": "run",
        "evaluate_documents": "run",
        "parse_evaluation": "options",
    },
)
