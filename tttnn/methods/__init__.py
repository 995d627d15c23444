"""What test-time training is compared with: each method is a trainer that differs in one step of the episode."""

from dataclasses import dataclass

from tttnn.adaptation.trainable import SIZES, TrainableArguments, make_trainable
from tttnn.methods.base import AdapterTrainer
from tttnn.methods.context import ContextAndTrainingTrainer, ContextArguments, ContextTrainer
from tttnn.methods.dynamic import DynamicTrainer, NoAdaptationTrainer
from tttnn.methods.knn_lm import KnnArguments, KnnLMTrainer, best_candidate


__all__ = [
    "METHODS",
    "SIZES",
    "AdapterTrainer",
    "ContextAndTrainingTrainer",
    "ContextArguments",
    "ContextTrainer",
    "DynamicTrainer",
    "KnnArguments",
    "KnnLMTrainer",
    "Method",
    "NoAdaptationTrainer",
    "TrainableArguments",
    "best_candidate",
    "make_trainable",
]

# Shared fields that only some methods have a use for.
RETRIEVING = {
    *(
        "index",
        "index_revision",
        "index_shards",
        "index_texts",
        "index_fraction",
        "embedder",
        "num_neighbors",
        "top_k",
        "max_distance",
        "exclude",
    ),
    *("drop_near_copies", "chunks_per_neighbor"),
}
STEPPING = {
    *("learning_rates", "reset_optimizer", "disable_dropout", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("lr_scheduler_kwargs", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("gradient_accumulation_steps", "max_grad_norm", "activation_checkpointing", "activation_checkpointing_kwargs"),
}
STEPPING_ON_NEIGHBORS = {"order", "score_every_neighbor", "num_train_epochs"}
CHOOSING = {"validation", "validation_limit"}


@dataclass(frozen=True)
class Method:
    """
    A method of `tttnn evaluate --method`.

    Args:
        trainer (`type`):
            Evaluates it.
        arguments (`dict[str, type]`):
            Dataclasses of the options that it has of its own, by the name under which its trainer takes them.
        description (`str`):
            What it does, in a line.
    """

    trainer: type[AdapterTrainer]
    arguments: dict[str, type]
    description: str

    @property
    def unused(self) -> set[str]:
        """Names of the shared fields that it has no use for."""
        retrieves, trains = self.trainer.retrieves, self.trainer.trains
        chooses = trains or "knn" in self.arguments
        rules = (
            (retrieves, RETRIEVING),
            (trains, STEPPING),
            (retrieves and trains, STEPPING_ON_NEIGHBORS),
            (chooses, CHOOSING),
        )
        return {name for used, names in rules if not used for name in names}


METHODS = {
    "ttt": Method(AdapterTrainer, {"trainable": TrainableArguments}, "a step on each neighbor"),
    "context": Method(ContextTrainer, {"context": ContextArguments}, "neighbors in the context window, no step"),
    "context+ttt": Method(
        ContextAndTrainingTrainer, {"trainable": TrainableArguments, "context": ContextArguments}, "both"
    ),
    "knn-lm": Method(KnnLMTrainer, {"knn": KnnArguments}, "the neighbors' hidden states vote for the next token"),
    "dynamic": Method(
        DynamicTrainer, {"trainable": TrainableArguments}, "score a window, take a step on it, go on; no neighbors"
    ),
    "none": Method(NoAdaptationTrainer, {}, "the model as it comes"),
}
