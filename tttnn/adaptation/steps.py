"""The optimizer steps on the neighbors of a document: `Trainer`'s own step, without its loop over epochs."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import NoReturn, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerControl
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.adaptation.callbacks import TestTimeCallback
from tttnn.adaptation.restore import Snapshot, prepared_for_training, restored, undisturbed
from tttnn.adaptation.windows import encode, training_chunks
from tttnn.errors import StateError
from tttnn.neighbors import Neighbor
from tttnn.records import DocumentRecord


class NotFiniteError(StateError):
    """A loss or a score that is no number any more: training diverged."""


def raise_not_finite(name: str, value: float) -> NoReturn:
    """
    Say that a loss or a score is no number any more.

    Args:
        name (`str`):
            Of what.
        value (`float`):
            What it is.

    Raises:
        `NotFiniteError`: Always.
    """
    raise NotFiniteError(
        f"The {name} is {value}: training diverged, or the model overflows in its precision. Lower `learning_rate`, "
        "or load the model in float32. The model was restored."
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@contextmanager
def in_model(record: DocumentRecord) -> Iterator[None]:
    """
    Count the time inside as time in the model.

    Args:
        record (`DocumentRecord`):
            Of the document at hand.
    """
    start = perf_counter()
    yield
    record.seconds["model"] += perf_counter() - start


class NeighborTrainer(Trainer):
    """A `Trainer` that takes its steps neighbor by neighbor; the ground floor of `TestTimeTrainer`."""

    args: TestTimeTrainingArguments
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    max_length: int
    _adapting = False

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Give the names of all parameters: the method decays every one."""
        return [name for name, _ in model.named_parameters()]

    def compute_loss_context_manager(self) -> ExitStack:
        """Enter the context of mixed precision, if `bf16` or `fp16` ask for it; the model itself stays unwrapped."""
        stack = super().compute_loss_context_manager()
        stack.enter_context(self.accelerator.autocast())
        return stack

    @contextmanager
    def _episodes(self, num_documents: int, snapshot: Snapshot | None = None) -> Iterator[Snapshot]:
        """Make ready to train inside; outside, the model is as before, and the optimizer fresh."""
        if self._adapting:
            raise StateError(
                "An episode is running: `adapt`, `evaluate` and `predict` cannot be called from its callbacks, for "
                "they share one optimizer. Call them before or after it."
            )
        args = self.args
        self.create_optimizer()
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.callback_handler.optimizer = self.optimizer
        # a schedule of `train` may have left another rate behind
        self._initial_groups = [
            {
                **{name: value for name, value in group.items() if name != "params"},
                "lr": group.get("initial_lr", group["lr"]),
            }
            for group in self.optimizer.param_groups
        ]
        if self.accelerator.scaler is not None:
            self._initial_scale = self.accelerator.scaler.state_dict()
        self._reset_optimizer()
        # an interrupted `train` may leave accelerate accumulating, and then it skips every step
        self.accelerator.gradient_state._set_sync_gradients(True)
        chunks = args.chunks_per_neighbor or 1
        steps = num_documents * args.num_neighbors * int(chunks) * int(args.num_train_epochs)
        self.state.compute_steps(args, self.state.global_step + steps)
        max_steps = self.state.max_steps
        self.state.max_steps = 2**62  # a bound that is never met: at it, the default flow would stop
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        with ExitStack() as stack:
            stack.callback(setattr, self.state, "max_steps", max_steps)
            stack.callback(setattr, self, "_adapting", False)
            self._adapting = True
            stack.callback(undisturbed, self._reset_optimizer)
            # the bar of `train` counts epochs, and fails on a step outside them
            bar = self.pop_callback(DEFAULT_PROGRESS_CALLBACK)
            if bar is not None:
                stack.callback(self.add_callback, bar)
            if snapshot is None:
                snapshot = stack.enter_context(restored(self.model))
            stack.enter_context(torch.inference_mode(False))  # which switches gradients on as well
            stack.enter_context(prepared_for_training(self.model, args.disable_dropout))
            if args.activation_checkpointing and not self.model.is_activation_checkpointing:
                self.model.activation_checkpointing_enable(
                    activation_checkpointing_kwargs=args.activation_checkpointing_kwargs
                )
                stack.callback(self.model.activation_checkpointing_disable)
            self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
            yield snapshot
            self.control = self.callback_handler.on_train_end(args, self.state, self.control)

    def _reset_optimizer(self) -> None:
        self.optimizer.state.clear()
        if self.accelerator.scaler is not None:  # of fp16: its scale moves with the steps
            self.accelerator.scaler.load_state_dict(self._initial_scale)
        for group, initial in zip(self.optimizer.param_groups, self._initial_groups, strict=True):
            group.update(initial)

    def _train_on(self, neighbors: list[Neighbor], record: DocumentRecord) -> Iterator[tuple[int, bool]]:
        """
        Take the steps of a document.

        Yields, after each neighbor or group of neighbors, how many they were and whether a step was taken: none is for
        neighbors without a token.
        """
        start = perf_counter()
        chunks = [self._chunks(neighbor) for neighbor in neighbors]
        record.seconds["train"] += perf_counter() - start
        yield from self._train_on_chunks(chunks, record)

    def _train_on_chunks(self, chunks: list[list[list[int]]], record: DocumentRecord) -> Iterator[tuple[int, bool]]:
        args, start = self.args, perf_counter()
        size = args.gradient_accumulation_steps
        groups = [chunks[first : first + size] for first in range(0, len(chunks), size)]
        passes = int(args.num_train_epochs)
        num_steps = passes * sum(sum(map(len, group)) if size == 1 else any(group) for group in groups)
        self.lr_scheduler = None
        self.create_scheduler(max(num_steps, 1))
        self.callback_handler.lr_scheduler = self.lr_scheduler
        self.control = TrainerControl()
        for group in groups * passes:
            self._train_on_group(group, record, one_step=size > 1)
            record.seconds["train"] += perf_counter() - start
            yield len(group), any(group)
            start = perf_counter()
            if self.control.should_training_stop:
                break

    def _chunks(self, neighbor: Neighbor) -> list[list[int]]:
        token_ids = encode(self.processing_class, neighbor.text)
        return training_chunks(token_ids, self.max_length, cast("int | None", self.args.chunks_per_neighbor))

    def _train_on_group(self, group: list[list[list[int]]], record: DocumentRecord, one_step: bool) -> None:
        """Train on a neighbor, a step per chunk, or on a group of neighbors in one step."""
        losses: list[list[float]] = [[] for _ in group]
        places = [(place, chunk) for place, chunks in enumerate(group) for chunk in chunks]
        steps = [places] if one_step and places else [[place] for place in places]
        before = len(record.train_loss)
        for number, step in enumerate(steps, 1):
            found = self._accumulate([chunk for _, chunk in step], record)
            for (place, _), loss in zip(step, found, strict=True):
                losses[place] += [] if math.isnan(loss) else [loss]
            if number == len(steps):
                # callbacks at the end of the last step see the loss of the whole neighbor
                record.train_loss += map(_mean, losses)
            self._take_step(_mean([loss for loss in found if not math.isnan(loss)]), record)
            if self.control.should_training_stop:
                break
        if len(record.train_loss) == before:
            record.train_loss += map(_mean, losses)

    def _accumulate(self, chunks: list[list[int]], record: DocumentRecord) -> list[float]:
        """Add up the gradients of one step, and give the loss of each chunk, NaN for one without a target."""
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        self.current_gradient_accumulation_steps = len(chunks)
        losses = []
        for number, chunk in enumerate(chunks, 1):
            inputs = self.data_collator([{"input_ids": chunk, "labels": chunk}])
            with in_model(record):
                loss = self.training_step(self.model, inputs).item() * len(chunks)
            record.num_trained_tokens += len(chunk)
            # a chunk of one token has no target and so no loss; its step still decays and carries momentum
            if len(chunk) == 1:
                loss = math.nan
            elif not math.isfinite(loss):
                raise_not_finite(f"training loss of document {record.index} ('{record.id}')", loss)
            losses.append(loss)
            if number < len(chunks):
                self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)
        return losses

    def _take_step(self, loss: float, record: DocumentRecord) -> None:
        args, handler = self.args, self.callback_handler
        with in_model(record):
            grad_norm = self._clip_grad_norm(self.model) if args.max_grad_norm > 0 else None
        self.control = handler.on_pre_optimizer_step(args, self.state, self.control)
        with in_model(record):
            self.optimizer.step()
        self.control = handler.on_optimizer_step(args, self.state, self.control)
        learning_rate = self._get_learning_rate()
        if not self.accelerator.optimizer_step_was_skipped:
            cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler).step()
        with in_model(record):
            self.model.zero_grad()
        self.state.global_step += 1
        self.control = handler.on_step_end(args, self.state, self.control)
        if self.control.should_log:
            logs = {"loss": loss, "learning_rate": learning_rate}
            self.log(logs if grad_norm is None else {**logs, "grad_norm": float(grad_norm)})

    def _dispatch(self, event: str, record: DocumentRecord) -> None:
        """Send one of our events to the callbacks that know it; `CallbackHandler.call_event` fails on the others."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TestTimeCallback):
                getattr(callback, event)(
                    self.args,
                    self.state,
                    self.control,
                    record=record,
                    model=self.model,
                    processing_class=self.processing_class,
                    optimizer=self.optimizer,
                )
