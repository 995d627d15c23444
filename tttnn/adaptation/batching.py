"""What can be run in batches of documents, checked before the first: see `batched.py`."""

from typing import TYPE_CHECKING

import torch
from transformers.data.data_collator import default_data_collator

from tttnn.adaptation import internals
from tttnn.adaptation.method import Method
from tttnn.adaptation.requirements import PROBE_TOLERANCE, evaluating, longrope_limit, probe_texts
from tttnn.adaptation.stacked import ADVICE, StackedAdapters, lora_places
from tttnn.adaptation.stopping import NeighborEarlyStoppingCallback
from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.adaptation.trainer import TestTimeTrainer

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")  # element by element


def check_batching(trainer: "TestTimeTrainer") -> None:
    """Make sure that documents can be run in batches with the method, the arguments and the model of a trainer."""
    _check_method(trainer.method)
    _check_arguments(trainer)
    lora_places(trainer.model)
    _check_rope(trainer)


def _check_method(method: Method) -> None:
    if not method.trains or method.starts or type(method).score_after is not Method.score_after:
        raise InputError(
            f"`batch_documents` is for methods that train LoRA on neighbors or on the query, and the method "
            f"{method.name} does something else. Choose ttt (`train_on='query'` takes steps on the query) or "
            f"context+ttt, or: {ADVICE}"
        )
    if method.trainable is not None and method.trainable.trainable != "lora":
        raise InputError(
            f"`batch_documents` trains LoRA, and `trainable` is {method.trainable.trainable!r}. Choose lora, or: "
            f"{ADVICE}"
        )


def _check_arguments(trainer: "TestTimeTrainer") -> None:
    args = trainer.args
    refused = {
        "score_every_neighbor": (args.score_every_neighbor, "documents are scored after their last step only"),
        "gradient_accumulation_steps": (
            args.gradient_accumulation_steps != 1,
            "each neighbor of a document makes a step",
        ),
        "reset_optimizer": (not args.reset_optimizer, "documents of a batch have no order to carry it in"),
        "disable_dropout": (not args.disable_dropout, "documents of a batch would draw other dropout than alone"),
        "router_aux_loss": (args.router_aux_loss, "that loss is one of all tokens of a batch"),
        "fp16": (args.fp16, "its loss scale would be shared; `bf16` works"),
        "optim": (args.optim not in OPTIMIZERS, f"the optimizer must be one of {', '.join(OPTIMIZERS)}"),
        "optim_args": (bool(args.optim_args), "the optimizer has no further arguments"),
    }
    for name, (wrong, reason) in refused.items():
        if wrong:
            value = getattr(args, name)
            shown = repr(getattr(value, "value", value))  # the optimizers are an enumeration
            raise InputError(
                f"`{name}` is {shown}, but with `batch_documents` {reason}. Leave `{name}` out, or: {ADVICE}"
            )
    if internals.has_optimizer_of_its_own(trainer) or trainer.data_collator is not default_data_collator:
        raise InputError(
            "An optimizer or a data collator of your own was passed, which `batch_documents` would not use. Leave it "
            f"out, or: {ADVICE}"
        )
    if any(isinstance(callback, NeighborEarlyStoppingCallback) for callback in internals.callbacks(trainer)):
        raise InputError(
            "`NeighborEarlyStoppingCallback` stops the training of a document, and with `batch_documents` a step "
            f"belongs to several. Leave it out, or: {ADVICE}"
        )


def _check_rope(trainer: "TestTimeTrainer") -> None:
    """Refuse chunks whose positions depend on the length of the longest text in a batch."""
    limit = longrope_limit(trainer.model)
    if limit is not None and trainer.max_length > limit:
        raise InputError(
            f"`max_length` is {trainer.max_length}, and the model reads texts of more than {limit} tokens with other "
            "positions (longrope): shorter texts in a batch would be read so as well. Pass at most "
            f"{limit}, or: {ADVICE}"
        )


@torch.no_grad()
def check_reading_together(trainer: "TestTimeTrainer") -> None:
    """
    Make sure that a model reads two texts of different lengths together as it reads each alone, by a probe.

    Each text has an adapter of random values: a model that mixes up documents, or in which what fills up the shorter
    text changes what it says of that text, is refused.
    """
    model = trainer.model
    kind = type(model.get_base_model()).__name__  # type: ignore[operator]
    long, other = probe_texts(model, trainer.processing_class).tolist()
    texts = [other[: max(len(other) // 2, 1)], long]
    stacked = StackedAdapters(model, len(texts))
    own = stacked.rows[0].clone()
    generator = torch.Generator().manual_seed(0)
    stacked.rows += 0.02 * torch.randn(stacked.rows.shape, generator=generator).to(stacked.rows)
    with evaluating(model):
        try:
            with stacked.in_place():
                together = stacked.read(model, texts)
            alone = []
            for row, text in zip(stacked.rows, texts, strict=True):
                stacked.load(row)
                alone.append(model(input_ids=torch.tensor([text], device=row.device)).logits[0])
        except (RuntimeError, TypeError, IndexError, AttributeError, AssertionError) as error:
            if internals.is_out_of_memory(error):
                raise
            raise InputError(
                f"The model is a {kind} and cannot read two texts of different lengths at once ({error!r:.300}). "
                f"{ADVICE}"
            ) from error
        finally:
            stacked.load(own)
    for logits, expected in zip(together, alone, strict=True):
        difference = (logits[: len(expected)] - expected).abs().max()
        if not difference <= PROBE_TOLERANCE[expected.dtype == torch.float32] * expected.abs().max():
            raise InputError(
                f"The model is a {kind} and says something else of a text when it reads a longer one beside it "
                f"(logits differ by up to {difference.item():.2g}). {ADVICE}"
            )
