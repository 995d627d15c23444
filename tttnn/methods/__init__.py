"""How a document can be scored: test-time training on nearest neighbors, and what it is compared with."""

from typing import TYPE_CHECKING

from tttnn.adaptation import Method, TestTimeTraining, TrainableArguments
from tttnn.doors import door
from tttnn.methods.budget import (
    BudgetChoice,
    choose_budget,
    choose_row,
    default_curve,
    parse_budget,
    with_budget,
)
from tttnn.methods.context import Context, ContextAndTraining, ContextArguments
from tttnn.methods.dynamic import Dynamic
from tttnn.methods.experts import ExpertArguments, ExpertsAndTraining, MergedExperts
from tttnn.methods.knn_lm import KnnArguments, KnnLM
from tttnn.methods.none import NoAdaptation, Prefix
from tttnn.methods.query import Query
from tttnn.methods.speed import Speed, measure_speed


if TYPE_CHECKING:
    from tttnn.adaptation import make_trainable
    from tttnn.methods.expert_training import ExpertTrainingArguments, train_experts

__all__ = [
    "METHODS",
    "BudgetChoice",
    "Context",
    "ContextAndTraining",
    "ContextArguments",
    "Dynamic",
    "ExpertArguments",
    "ExpertTrainingArguments",
    "ExpertsAndTraining",
    "KnnArguments",
    "KnnLM",
    "MergedExperts",
    "Method",
    "NoAdaptation",
    "Prefix",
    "Query",
    "Speed",
    "TestTimeTraining",
    "TrainableArguments",
    "choose_budget",
    "choose_row",
    "default_curve",
    "make_trainable",
    "measure_speed",
    "parse_budget",
    "train_experts",
    "with_budget",
]

# the methods are here from the beginning, for the help; these import torch
__getattr__, _ = door(
    __name__,
    {
        "ExpertTrainingArguments": "expert_training",
        "make_trainable": ".adaptation",
        "train_experts": "expert_training",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)


# By the name that `tttnn evaluate --method` takes.
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(TestTimeTraining, Query, Context, ContextAndTraining, MergedExperts, ExpertsAndTraining),
        *(KnnLM, Dynamic, Prefix, NoAdaptation),
    )
}
