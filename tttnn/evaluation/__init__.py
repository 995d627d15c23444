"""Evaluating a method on test documents."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.evaluation.lm_eval import TestTimeLM
    from tttnn.evaluation.lm_eval_samples import HarnessResult, HarnessRun, harness_results, read_harness_run
    from tttnn.evaluation.loading import load_model, load_trainer, load_trainer_arguments
    from tttnn.evaluation.options import Budget, EvaluateArguments, Evaluation, ModelArguments
    from tttnn.evaluation.parsing import parse_evaluation
    from tttnn.evaluation.pile import TEST_FRACTION, parse_tasks, pile_weights, select_documents, task_of
    from tttnn.evaluation.run import Outcome, evaluate_documents
    from tttnn.evaluation.tune import tune_on_index

__all__ = [
    "Budget",
    "EvaluateArguments",
    "Evaluation",
    "HarnessResult",
    "HarnessRun",
    "ModelArguments",
    "Outcome",
    "TEST_FRACTION",
    "TestTimeLM",
    "evaluate_documents",
    "harness_results",
    "load_model",
    "load_trainer",
    "load_trainer_arguments",
    "parse_evaluation",
    "parse_tasks",
    "pile_weights",
    "read_harness_run",
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
        "HarnessResult": "lm_eval_samples",
        "HarnessRun": "lm_eval_samples",
        "TestTimeLM": "lm_eval",
        "harness_results": "lm_eval_samples",
        "read_harness_run": "lm_eval_samples",
        "Outcome": "run",
        "TEST_FRACTION": "pile",
        "evaluate_documents": "run",
        "load_model": "loading",
        "load_trainer": "loading",
        "load_trainer_arguments": "loading",
        "parse_evaluation": "parsing",
        "parse_tasks": "pile",
        "pile_weights": "pile",
        "select_documents": "pile",
        "task_of": "pile",
        "tune_on_index": "tune",
    },
)
