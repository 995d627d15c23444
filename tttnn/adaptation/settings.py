"""What the numbers of a run depend on, for its journal."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.neighbors import Retriever
from tttnn.records import digest
from tttnn.retrieval.retriever import NeighborRetriever


# Fields of `Trainer` on which a number depends, beside our own but for those that only say where things go.
TRAINER_SETTINGS = (
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("warmup_steps", "lr_scheduler_kwargs", "seed", "bf16", "fp16"),
)

NOT_SETTINGS = ("output_dir", "text_column", "per_device_eval_batch_size", "ddp_timeout", "save_strategy")


def run_settings(
    args: TestTimeTrainingArguments,
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    retriever: Retriever | None,
    optimizer: torch.optim.Optimizer,
    early_stopping: list[tuple[int, float]],
) -> dict[str, Any]:
    """
    Say what the numbers of a run depend on, for its journal.

    Args:
        args (`TestTimeTrainingArguments`):
            The trainer's arguments.
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        retriever (`Retriever`, *optional*):
            Where neighbors come from; the digest of its index is taken if it is a `NeighborRetriever`.
        optimizer (`torch.optim.Optimizer`):
            The optimizer.
        early_stopping (`list[tuple[int, float]]`):
            Patience and least change of each callback that stops early.

    Returns:
        `dict[str, Any]`: by name.
    """
    names = [name for name in TestTimeTrainingArguments.__annotations__ if name not in NOT_SETTINGS]
    # a sample of each tensor tells a model from another of the same name, at no cost to speak of
    samples = [weight.detach().flatten()[:: max(1, weight.numel() // 64)].tolist() for weight in model.parameters()]
    return {
        **{name: getattr(args, name) for name in (*names, *TRAINER_SETTINGS)},
        "model": model.config._name_or_path,
        "weights": digest(repr(samples)),
        "tokenizer": processing_class.name_or_path,
        "revision": getattr(model.config, "_commit_hash", None),
        "retriever": type(retriever).__qualname__,
        "index": retriever.index.digest if isinstance(retriever, NeighborRetriever) else None,
        "num_indexed": len(retriever) if isinstance(retriever, NeighborRetriever) else None,
        "optimizer": repr(optimizer.defaults),
        "early_stopping": early_stopping,
    }
