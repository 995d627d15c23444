"""A contract for each of the internals of `transformers.Trainer` that `tttnn.adaptation.internals` relies on."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

import tttnn
from tttnn.adaptation import internals


CHUNK = list(range(5, 15))


@pytest.fixture
def ready(trainer):
    """A trainer whose optimizer is made."""
    internals.prepare_optimizer(trainer)
    return trainer


def test_create_optimizer_keeps_an_optimizer_that_is_there(ready):
    optimizer = ready.optimizer
    internals.prepare_optimizer(ready)
    assert ready.optimizer is optimizer
    assert ready.callback_handler.optimizer is optimizer


def test_the_optimizer_decays_every_parameter(ready):
    decays = {group["weight_decay"] for group in ready.optimizer.param_groups if group["params"]}
    assert decays == {ready.args.weight_decay}


def test_create_scheduler_makes_a_schedule_over_the_steps_it_is_told(make_trainer):
    trainer = make_trainer(lr_scheduler_type="linear", learning_rate=1.0)
    internals.prepare_optimizer(trainer)
    internals.prepare_scheduler(trainer, 4)
    rates = []
    for _ in range(4):
        trainer.optimizer.step()
        rates.append(internals.step_scheduler(trainer))
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_rates_of_all_steps_are_those_of_the_schedule_step_by_step(make_trainer, kind):
    trainer = make_trainer(lr_scheduler_type=kind, learning_rate=0.5, warmup_steps=2)
    internals.prepare_optimizer(trainer)
    rates = internals.learning_rates(trainer, 5)
    internals.prepare_scheduler(trainer, 5)
    expected = []
    for _ in range(5):
        trainer.optimizer.step()
        expected.append(internals.step_scheduler(trainer))
    assert rates == pytest.approx(expected)


def test_a_schedule_that_follows_the_loss_has_no_rates_before_the_steps(make_trainer):
    trainer = make_trainer()
    trainer.args.lr_scheduler_type = "reduce_lr_on_plateau"  # the arguments alone refuse it already
    internals.prepare_optimizer(trainer)
    with pytest.raises(ValueError, match="`lr_scheduler_type` is .*, whose rates are not known before the steps"):
        internals.learning_rates(trainer, 5)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_an_optimizer_of_rows_is_that_of_the_trainer(make_trainer, optim):
    trainer = make_trainer(optim=optim, weight_decay=0.3, adam_beta1=0.8)
    internals.prepare_optimizer(trainer)
    optimizer = internals.make_row_optimizer(trainer, [torch.zeros(3), torch.zeros(3)])
    assert type(optimizer) is type(trainer.optimizer.optimizer)
    assert optimizer.defaults == trainer.optimizer.defaults
    expected = {name: value for name, value in trainer.optimizer.param_groups[0].items() if name != "params"}
    for group in optimizer.param_groups:
        assert {name: value for name, value in group.items() if name != "params"} == expected


def test_an_optimizer_that_was_passed_is_known(make_trainer, model):
    trainer = make_trainer()
    assert not internals.has_optimizer_of_its_own(trainer)
    internals.prepare_optimizer(trainer)
    assert not internals.has_optimizer_of_its_own(trainer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert internals.has_optimizer_of_its_own(make_trainer(optimizers=(optimizer, None)))


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory."), False),
    ],
    ids=repr,
)
def test_errors_that_say_there_is_no_memory_are_known(error, is_memory):
    assert internals.is_out_of_memory(error) is is_memory
    internals.empty_cache()


def test_training_step_divides_the_loss_by_the_accumulation_steps(ready):
    torch.manual_seed(0)  # of dropout
    loss = internals.add_gradients(ready, CHUNK, 1)
    whole = [parameter.grad.clone() for parameter in ready.model.parameters()]
    ready.model.zero_grad()
    torch.manual_seed(0)
    assert internals.add_gradients(ready, CHUNK, 4) == pytest.approx(loss)
    for parameter, gradient in zip(ready.model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad * 4, gradient)


def test_training_step_calls_compute_loss_in_its_context(ready, monkeypatch):
    seen = []
    compute_loss = Trainer.compute_loss
    monkeypatch.setattr(Trainer, "compute_loss", lambda *args, **kw: seen.append(1) or compute_loss(*args, **kw))
    internals.add_gradients(ready, CHUNK, 1)
    assert seen == [1]


def test_clip_grad_norm_clips_and_gives_the_norm_before(make_trainer):
    trainer = make_trainer(max_grad_norm=1e-3)
    internals.prepare_optimizer(trainer)
    internals.add_gradients(trainer, CHUNK, 1)
    norm = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()]).norm()
    assert internals.clip_gradients(trainer).item() == pytest.approx(norm.item(), rel=1e-5)
    clipped = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


def test_without_a_limit_nothing_is_clipped(make_trainer):
    assert internals.clip_gradients(make_trainer(max_grad_norm=0.0)) is None


def test_compute_loss_context_manager_is_a_stack_that_takes_the_context_of_mixed_precision(make_trainer):
    trainer = make_trainer(bf16=True)
    with trainer.compute_loss_context_manager():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_default_flow_stops_training_at_max_steps(tmp_path):
    args, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(global_step=3, max_steps=3)
    assert DefaultFlowCallback().on_step_end(args, state, TrainerControl()).should_training_stop


def test_compute_steps_turns_a_share_into_steps(make_trainer):
    trainer = make_trainer(logging_steps=0.1)
    with internals.training_state(trainer, 50):
        assert trainer.state.logging_steps == 5
        assert trainer.state.max_steps > 2**60
    assert trainer.state.max_steps < 2**60


def test_the_bar_of_train_is_put_aside_and_put_back(make_trainer):
    trainer = make_trainer(disable_tqdm=False)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert internals.DEFAULT_PROGRESS_CALLBACK in kinds
    with internals.training_state(trainer, 1):
        inside = {type(callback) for callback in trainer.callback_handler.callbacks}
        assert kinds - inside == {internals.DEFAULT_PROGRESS_CALLBACK}
    assert {type(callback) for callback in trainer.callback_handler.callbacks} == kinds


def test_activation_checkpointing_is_on_inside_only(make_trainer):
    trainer = make_trainer(activation_checkpointing=True)
    with internals.activation_checkpointing(trainer):
        assert trainer.model.is_activation_checkpointing
    assert not trainer.model.is_activation_checkpointing


@pytest.mark.parametrize(
    "event",
    ["on_train_begin", "on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"],
)
def test_an_event_gives_the_control_that_follows(trainer, event):
    internals.fire(trainer, event)
    assert isinstance(trainer.control, TrainerControl)


def test_no_launcher_means_nothing_is_sharded(trainer):
    assert not internals.is_sharded(trainer)


def test_without_fp16_there_is_no_scale(ready):
    assert internals.reset_scaler(ready) is None


def test_trainer_switches_the_cache_of_a_model_off_which_ours_takes_back(make_trainer, model, tmp_path):
    plain = copy.deepcopy(model)
    assert model.config.use_cache and plain.config.use_cache
    Trainer(plain, TrainingArguments(str(tmp_path / "plain"), use_cpu=True, report_to="none"))
    assert not plain.config.use_cache
    make_trainer()
    assert model.config.use_cache


def test_callbacks_are_listed_in_the_order_in_which_they_are_called(make_trainer):
    calls = []

    class Note(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            calls.append(self)

    trainer = make_trainer(callbacks=[Note(), Note()])
    internals.fire(trainer, "on_step_end")
    assert [callback for callback in internals.callbacks(trainer) if isinstance(callback, Note)] == calls


def test_the_loader_of_an_evaluation_is_shown_to_callbacks(trainer):
    seen = []

    class Note(TrainerCallback):
        def on_step_end(self, *args, eval_dataloader, **kwargs):
            seen.append(eval_dataloader)

    trainer.add_callback(Note())
    internals.show_dataloader(trainer, "a loader")
    internals.fire(trainer, "on_step_end")
    assert seen == ["a loader"]


def test_no_other_file_uses_what_is_inside_of_trainer():
    inside = re.compile(r"\bcallback_handler\b|(?<!torch)\.accelerator\b|\btrainer\._\w+")
    for path in Path(tttnn.__file__).parent.rglob("*.py"):
        if path.name != "internals.py":
            assert not inside.findall(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("caller", ["evaluate", "predict"])
def test_evaluate_and_predict_call_the_loop_with_the_loader_and_the_prefix(trainer, documents, monkeypatch, caller):
    prefixes = []
    loop = type(trainer).evaluation_loop

    def noted(self, dataloader, *args, **kwargs):
        prefixes.append((len(list(dataloader.sampler)), kwargs.get("metric_key_prefix")))
        return loop(self, dataloader, *args, **kwargs)

    monkeypatch.setattr(type(trainer), "evaluation_loop", noted)
    getattr(trainer, caller)(documents)
    assert prefixes == [(3, "eval" if caller == "evaluate" else "test")]


def test_every_function_here_says_what_it_relies_on():
    functions = [
        item for _, item in inspect.getmembers(internals, inspect.isfunction) if item.__module__ == internals.__name__
    ]
    assert len(functions) > 9
    for function in functions:
        assert "Relies on:" in function.__doc__, function.__name__
