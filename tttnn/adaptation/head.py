"""The output layer apart from the rest of a model: logits a few rows at a time, so that they need little memory."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

from tttnn.adaptation.requirements import is_peft


MAX_LOGITS = 2**23  # at a time: 32 MB in float32, and rows enough for a fast matrix product


@contextmanager
def last_row_only(head: torch.nn.Linear | None) -> Iterator[list[torch.Tensor]]:
    """
    Let a model compute only its last row of logits; give a list that gets what the output layer was to read.

    Without `head` the model is left alone, and the list stays empty.
    """
    seen: list[torch.Tensor] = []

    def keep_last(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        seen.append(args[0])
        return (args[0][..., -1:, :],)

    if head is None:
        yield seen
        return
    handle = head.register_forward_pre_hook(keep_last)
    try:
        yield seen
    finally:
        handle.remove()


def is_last_row(head: torch.nn.Linear, hidden: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether a model handed out the last row of logits as its output layer gives it without hooks."""
    with torch.no_grad():
        return torch.equal(logits, functional.linear(hidden[..., -1:, :], head.weight, head.bias))


def keeps_logits(model: PreTrainedModel) -> bool:
    """Whether a model can be asked for the last logits only."""
    base = model.get_base_model() if is_peft(model) else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def token_nll(rows: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear | None = None) -> torch.Tensor:
    """
    Give the nll in nats of each target, which the last rows predict.

    `rows`, of shape `(tokens, size)`, are logits, or with `head` what it makes logits of.
    """
    size = _num_rows(rows.shape[1] if head is None else len(head.weight))
    rows = rows[len(rows) - len(targets) :]
    parts = zip(rows.split(size), targets.split(size), strict=True)
    logits = ((part if head is None else head(part), ids) for part, ids in parts)
    return torch.cat([functional.cross_entropy(part.float(), ids, reduction="none") for part, ids in logits])


def head_loss(head: torch.nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Give the same as `next_token_loss` of the logits that the output layer makes of `hidden`, in float32.

    All logits and their gradient are never in memory at once, and nothing is computed twice: the gradient of a few
    rows is made right after their logits.
    """
    targets = functional.pad(labels, (0, 1), value=-100)[..., 1:].flatten().to(hidden.device)
    is_target = targets != -100
    rows = hidden.flatten(0, -2)[-len(targets) :]
    return _HeadLoss.apply(rows[is_target], head.weight, head.bias, targets[is_target])


class _HeadLoss(torch.autograd.Function):
    """Linear layer and mean cross-entropy; the gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        inputs = (hidden, weight, bias)
        for_hidden, for_weight, for_bias = ctx.gradients = [
            torch.zeros_like(tensor) if needed and tensor is not None else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)
        ]
        total, rows = torch.zeros((), device=hidden.device), _num_rows(len(weight))
        for start in range(0, len(targets), rows):
            part, ids = hidden[start : start + rows], targets[start : start + rows, None]
            values = functional.linear(part, weight, bias).log_softmax(1)
            total -= values.gather(1, ids).sum()
            if not any(ctx.needs_input_grad):
                continue
            values.exp_().scatter_add_(1, ids, values.new_full(ids.shape, -1.0)).div_(len(targets))
            if for_hidden is not None:
                torch.mm(values, weight, out=for_hidden[start : start + rows])
            if for_weight is not None:
                for_weight.addmm_(values.T, part)
            if for_bias is not None:
                for_bias += values.sum(0)
        return total / len(targets) if len(targets) else total * torch.nan

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if value is None else value.mul_(gradient) for value in gradients), None)


def _num_rows(vocabulary: int) -> int:
    return max(MAX_LOGITS // vocabulary, 1)
