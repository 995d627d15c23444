"""The optimizer steps on the chunks of a document's neighbors: `Trainer`'s own step, without its loop over epochs."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, NoReturn

import torch
from transformers import TrainerControl

from tttnn.adaptation import internals
from tttnn.adaptation.callbacks import dispatch
from tttnn.errors import StateError
from tttnn.records import DocumentRecord


if TYPE_CHECKING:
    from tttnn.adaptation.trainer import TestTimeTrainer

Chunks = list[list[int]]  # of one neighbor, each the tokens of a training step


class NotFiniteError(StateError):
    """A loss or a score is not a number any more: training diverged."""


def raise_not_finite(name: str, value: float) -> NoReturn:
    """Say that a loss or a score is not a number any more."""
    raise NotFiniteError(
        f"The {name} is {value}: training diverged, or the model overflows in its precision. Lower `learning_rate`, "
        "or load the model in float32. The model was restored."
    )


@contextmanager
def in_model(record: DocumentRecord) -> Iterator[None]:
    """Count the time inside as time in the model."""
    start = perf_counter()
    yield
    record.seconds["model"] += perf_counter() - start


class OptimizerState:
    """What of the optimizer a document changes, to be brought back: its state, its groups, the scale of fp16."""

    def __init__(self, trainer: "TestTimeTrainer") -> None:
        self.trainer = trainer
        self.optimizer = trainer.optimizer
        # a schedule of `train` may have left another rate behind
        self.groups = [
            {
                **{name: value for name, value in group.items() if name != "params"},
                "lr": group.get("initial_lr", group["lr"]),
            }
            for group in self.optimizer.param_groups
        ]
        self.scale = internals.reset_scaler(trainer)
        # an optimizer that was passed may have a state of its user's
        self.state = {
            parameter: {name: _copy(value) for name, value in values.items()}
            for parameter, values in self.optimizer.state.items()
        }
        self.reset()

    def reset(self) -> None:
        """Make the optimizer as it was before any step."""
        self.optimizer.state.clear()
        internals.reset_scaler(self.trainer, self.scale)
        for group, initial in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(initial)

    def close(self) -> None:
        """Give the optimizer back with the state that it had."""
        self.reset()
        self.optimizer.state.update(self.state)


def train_on(
    trainer: "TestTimeTrainer", neighbors: list[Chunks], weights: list[float], record: DocumentRecord
) -> Iterator[tuple[int, bool]]:
    """
    Take the steps of a document.

    Yields, after each neighbor or group of neighbors that share a step, how many they were and whether a step was
    taken: none is taken for neighbors without a token.
    """
    args, start = trainer.args, perf_counter()
    size, passes = args.gradient_accumulation_steps, int(args.num_train_epochs)
    weighted = list(zip(neighbors, weights, strict=True))
    groups = [weighted[first : first + size] for first in range(0, len(weighted), size)]
    num_steps = passes * sum(_num_steps([chunks for chunks, _ in group], size) for group in groups)
    internals.prepare_scheduler(trainer, num_steps)
    trainer.control = TrainerControl()
    dispatch(trainer, "on_steps_begin", record=record, num_steps=num_steps)
    for group in groups * passes:
        _train_on_group(trainer, group, record)
        record.seconds["train"] += perf_counter() - start
        yield len(group), any(chunks for chunks, _ in group)
        start = perf_counter()
        if trainer.control.should_training_stop:
            break


def _num_steps(group: list[Chunks], size: int) -> int:
    return sum(map(len, group)) if size == 1 else int(any(group))


def _train_on_group(trainer: "TestTimeTrainer", group: list[tuple[Chunks, float]], record: DocumentRecord) -> None:
    """Train on a neighbor, a step per chunk, or on a group of neighbors in one step."""
    losses: list[list[float]] = [[] for _ in group]
    places = [(place, chunk, weight) for place, (chunks, weight) in enumerate(group) for chunk in chunks]
    together = trainer.args.gradient_accumulation_steps > 1 and places
    steps = [places] if together else [[place] for place in places]
    before = len(record.train_loss)
    for number, step in enumerate(steps, 1):
        step_losses = _add_up_gradients(trainer, [(chunk, weight) for _, chunk, weight in step], record)
        for (place, _, _), loss in zip(step, step_losses, strict=True):
            losses[place] += [] if math.isnan(loss) else [loss]
        if number == len(steps):
            # callbacks at the end of the last step see the loss of the whole neighbor
            record.train_loss += map(_mean, losses)
        _take_step(trainer, _mean([loss for loss in step_losses if not math.isnan(loss)]), record)
        if trainer.control.should_training_stop:
            break
    if len(record.train_loss) == before:
        record.train_loss += map(_mean, losses)


def _add_up_gradients(
    trainer: "TestTimeTrainer", chunks: list[tuple[list[int], float]], record: DocumentRecord
) -> list[float]:
    """Add up the gradients of one step, and give the loss of each chunk, NaN for one without a target."""
    internals.fire(trainer, "on_step_begin")
    losses = []
    for number, (chunk, weight) in enumerate(chunks, 1):
        with in_model(record):
            loss = internals.add_gradients(trainer, chunk, len(chunks), weight)
        record.num_trained_tokens += len(chunk)
        # a chunk of one token has no target and so no loss; its step still decays and carries momentum
        if len(chunk) == 1:
            loss = math.nan
        elif not math.isfinite(loss):
            raise_not_finite(f"training loss of document {record.index} ('{record.id}')", loss)
        losses.append(loss)
        if number < len(chunks):
            internals.fire(trainer, "on_substep_end")
    return losses


def _take_step(trainer: "TestTimeTrainer", loss: float, record: DocumentRecord) -> None:
    with in_model(record):
        grad_norm = internals.clip_gradients(trainer)
    internals.fire(trainer, "on_pre_optimizer_step")
    with in_model(record):
        trainer.optimizer.step()
    internals.fire(trainer, "on_optimizer_step")
    learning_rate = internals.step_scheduler(trainer)
    with in_model(record):
        trainer.model.zero_grad()
    trainer.state.global_step += 1
    internals.fire(trainer, "on_step_end")
    if trainer.control.should_log:
        logs = {"loss": loss, "learning_rate": learning_rate}
        trainer.log(logs if grad_norm is None else {**logs, "grad_norm": float(grad_norm)})


def check_weights(parameters: Sequence[torch.Tensor]) -> None:
    """Make sure that the adapted weights are numbers: no later loss would show what the last step did."""
    norm = torch.stack(torch._foreach_norm([weight.detach() for weight in parameters])).norm()
    if not norm.isfinite():
        raise_not_finite("norm of the adapted weights", norm.item())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value
