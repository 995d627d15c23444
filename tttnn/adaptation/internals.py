"""
What tttnn uses inside of `transformers.Trainer`: the accelerator, the callback handler and names with an underscore.

Each function names the internals that it uses; `tests/adaptation/test_internals.py` holds them, one contract test for
each, so that a new version of transformers that changes one is noticed there. It also holds that no other file uses
any. Other files use what `Trainer` documents (its arguments, events, `state`, `control` and `log`), and
`TestTimeTrainer` overrides methods: `get_eval_dataloader`, `get_test_dataloader`, `evaluation_loop`, `compute_loss`,
`compute_loss_context_manager`, `get_decay_parameter_names` and `create_model_card`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import SchedulerType

from tttnn.adaptation.options import OPTIMIZER_ARGUMENTS
from tttnn.errors import InputError


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tttnn.adaptation.trainer import TestTimeTrainer


def prepare_optimizer(trainer: "TestTimeTrainer") -> torch.optim.Optimizer:
    """
    Make the optimizer, unless one was passed, and let accelerate wrap it once.

    It is made again if its arguments or the trainable parameters have changed since.

    Relies on: `create_optimizer` keeps an optimizer that is there; `accelerator.prepare` marks what it has wrapped.
    """
    args, parameters = trainer.args, trainer.model.parameters()
    wanted = (
        [getattr(args, name) for name in OPTIMIZER_ARGUMENTS],
        [id(parameter) for parameter in parameters if parameter.requires_grad],
    )
    if trainer.made_optimizer_of not in (None, wanted):
        trainer.optimizer = None  # type: ignore[assignment]
    if trainer.optimizer is None:
        trainer.made_optimizer_of = wanted
    trainer.create_optimizer()
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    trainer.callback_handler.optimizer = trainer.optimizer
    # an interrupted `train` may leave accelerate accumulating, and then it skips every step
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    return trainer.optimizer


def has_autocast(trainer: "TestTimeTrainer") -> bool:
    """
    Whether mixed precision that was asked for is in effect on the device.

    Relies on: `Accelerator.native_amp`.
    """
    return bool(trainer.accelerator.native_amp)


def prepare_scheduler(trainer: "TestTimeTrainer", num_steps: int) -> None:
    """
    Make the learning-rate schedule of one document.

    Relies on: `create_scheduler` makes one if `lr_scheduler` is None; `TrainingArguments.get_warmup_steps`.
    """
    trainer.lr_scheduler = None
    try:
        trainer.create_scheduler(max(num_steps, 1))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"`lr_scheduler_type` is {SchedulerType(trainer.args.lr_scheduler_type).value!r}, and it cannot be made: "
            f"{str(error).rstrip('. ')}. Pass what it needs as `lr_scheduler_kwargs`, or choose another."
        ) from error
    trainer.callback_handler.lr_scheduler = trainer.lr_scheduler


def learning_rates(trainer: "TestTimeTrainer", num_steps: int) -> list[float]:
    """
    Give the learning rate of each of a document's steps.

    Relies on: `create_scheduler` makes a `LambdaLR`, whose function gives a factor of the rate for each step.
    """
    prepare_scheduler(trainer, num_steps)
    scheduler = trainer.lr_scheduler
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise InputError(
            f"`lr_scheduler_type` is {str(trainer.args.lr_scheduler_type)!r}, whose rates are not known before the "
            "steps, as `batch_documents` needs them. Choose another, or set `batch_documents` to 1."
        )
    (function, *_), rate = scheduler.lr_lambdas, scheduler.base_lrs[0]
    return [float(rate * function(step)) for step in range(num_steps)]


def make_row_optimizer(trainer: "TestTimeTrainer", rows: list[torch.Tensor]) -> torch.optim.Optimizer:
    """
    Make an optimizer as the trainer's with a group for each row, the parameters of one document.

    Relies on: `get_optimizer_cls_and_kwargs` gives what `create_optimizer` makes its optimizer of.
    """
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    groups = [{"params": [row], "weight_decay": trainer.args.weight_decay} for row in rows]
    return cast(torch.optim.Optimizer, kind(groups, **options))


def has_optimizer_of_its_own(trainer: "TestTimeTrainer") -> bool:
    """
    Whether an optimizer, or the class of one, was passed to the trainer.

    Relies on: `optimizer_cls_and_kwargs` of the trainer; an optimizer that is there and was not made by
    `prepare_optimizer` was passed.
    """
    passed = trainer.optimizer is not None and trainer.made_optimizer_of is None
    return passed or trainer.optimizer_cls_and_kwargs is not None


def is_out_of_memory(error: BaseException) -> bool:
    """
    Whether an error says that there is no memory left on a device or in the machine.

    Relies on: `should_reduce_batch_size` of accelerate, which knows the messages of the devices.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and should_reduce_batch_size(error)
    )


def empty_cache() -> None:
    """
    Give memory that was freed back to the device.

    Relies on: `clear_device_cache` of accelerate, which knows the devices.
    """
    clear_device_cache(garbage_collection=True)


def add_gradients(trainer: "TestTimeTrainer", chunk: list[int], num_chunks: int, weight: float = 1.0) -> float:
    """
    Add the gradient of one chunk of `num_chunks` in a step, times `weight`; give its mean loss per token in nats.

    Relies on: `training_step` moves the inputs to the device, calls `compute_loss`, divides the loss by
    `current_gradient_accumulation_steps` and goes backward.
    """
    trainer.current_gradient_accumulation_steps = num_chunks
    inputs = trainer.data_collator([{"input_ids": chunk, "labels": chunk}])
    inputs["loss_weight"] = weight
    return trainer.training_step(trainer.model, inputs).item() * num_chunks / weight


def clip_gradients(trainer: "TestTimeTrainer") -> torch.Tensor | None:
    """
    Clip the norm of the gradient to `max_grad_norm`, and give the norm before.

    Relies on: `_clip_grad_norm`, which unscales the gradients of fp16 first.
    """
    if not trainer.args.max_grad_norm > 0:
        return None
    return cast(torch.Tensor, trainer._clip_grad_norm(trainer.model))


def step_scheduler(trainer: "TestTimeTrainer") -> float:
    """
    Move the schedule on, and give the learning rate of the step that was taken.

    Relies on: `_get_learning_rate`; `accelerator.optimizer_step_was_skipped`, of fp16 that overflowed.
    """
    learning_rate = trainer._get_learning_rate()
    if not trainer.accelerator.optimizer_step_was_skipped:
        cast(torch.optim.lr_scheduler.LRScheduler, trainer.lr_scheduler).step()
    return learning_rate


def autocast(trainer: "TestTimeTrainer", stack: ExitStack) -> ExitStack:
    """
    Enter the context of mixed precision, if `bf16` or `fp16` ask for it, while the model itself stays unwrapped.

    Relies on: `compute_loss_context_manager` is the context of every forward pass of `training_step`.
    """
    stack.enter_context(trainer.accelerator.autocast())
    return stack


@contextmanager
def training_state(trainer: "TestTimeTrainer", num_steps: int) -> Iterator[None]:
    """
    Put `trainer.state` and the callbacks into the state in which steps can be taken outside of `train`.

    Relies on: `state.compute_steps` turns logging intervals that are ratios into steps; `DefaultFlowCallback` stops
    training at `state.max_steps`; the progress bar of `train` counts epochs, and fails on a step outside them.
    """
    state, args = trainer.state, trainer.args
    state.compute_steps(args, state.global_step + num_steps)
    max_steps = state.max_steps
    state.max_steps = 2**62  # never reached
    state.is_local_process_zero = trainer.is_local_process_zero()
    state.is_world_process_zero = trainer.is_world_process_zero()
    bar = trainer.pop_callback(DEFAULT_PROGRESS_CALLBACK)
    try:
        yield
    finally:
        state.max_steps = max_steps
        if bar is not None:
            trainer.add_callback(bar)


@contextmanager
def activation_checkpointing(trainer: "TestTimeTrainer") -> Iterator[None]:
    """
    Turn activation checkpointing on inside, if the arguments ask for it, with the options that they have.

    Relies on: `activation_checkpointing_enable` and `_disable` of the model, its `is_activation_checkpointing`, and
    `disable_input_require_grads`, which removes the hooks on the embeddings that enabling registers and disabling
    leaves there.
    """
    args, model = trainer.args, trainer.model
    if not args.activation_checkpointing or model.is_activation_checkpointing:
        yield
        return
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=args.activation_checkpointing_kwargs)
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()


def restore_use_cache(model: "PreTrainedModel", config: dict[str, Any]) -> None:
    """
    Bring `use_cache` of a model's config back to what it was in `config`, its attributes before.

    Relies on: `Trainer.__init__` turns the key-value cache off for good, also of a config that has no such attribute.
    """
    if "use_cache" in config:
        model.config.use_cache = config["use_cache"]
    else:
        vars(model.config).pop("use_cache", None)


def callbacks(trainer: "TestTimeTrainer") -> list[TrainerCallback]:
    """
    List the callbacks, in the order in which they are called.

    Relies on: `callback_handler.callbacks`.
    """
    return cast("list[TrainerCallback]", trainer.callback_handler.callbacks)


def show_dataloader(trainer: "TestTimeTrainer", dataloader: Any) -> None:  # noqa: ANN401
    """
    Let events of an evaluation pass its loader to callbacks.

    Relies on: `callback_handler.eval_dataloader`.
    """
    trainer.callback_handler.eval_dataloader = dataloader


def is_sharded(trainer: "TestTimeTrainer") -> bool:
    """
    Whether the launcher set up FSDP or DeepSpeed.

    Relies on: `is_fsdp_enabled` and `is_deepspeed_enabled`.
    """
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def fire(trainer: "TestTimeTrainer", event: str) -> None:
    """
    Send one of Trainer's events to its callbacks.

    Relies on: the methods of `callback_handler`, each of which gives the control that follows.
    """
    trainer.control = getattr(trainer.callback_handler, event)(trainer.args, trainer.state, trainer.control)


def reset_scaler(trainer: "TestTimeTrainer", state: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """
    Give the state of the loss scale of fp16, or bring one back; None without fp16.

    Relies on: `accelerator.scaler`, whose scale moves with the steps.
    """
    scaler = trainer.accelerator.scaler
    if scaler is None:
        return None
    if state is not None:
        scaler.load_state_dict(state)
    return cast("dict[str, Any]", scaler.state_dict())
