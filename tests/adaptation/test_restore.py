"""Whatever happens while a model is adapted, it leaves as it came, to the bit."""

import copy
import linecache
import math
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

import tttnn.adaptation.episode
import tttnn.adaptation.restore
from tttnn import Neighbor, TestTimeCallback, restored
from tttnn.adaptation.restore import Snapshot


DOCUMENTS = ["The captain saw the whale from the boat.", "def load(path):\n    return json.load(path)\n"]
LORA_TARGETS = {
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "gpt_neo": ["q_proj", "v_proj"],
}


class ListRetriever:
    """Gives the same neighbors to each query, and fails at its `fails_at`-th call."""

    texts = ("The white whale was seen by the crew.", "import json\nprint(json)\n", "Let x be a rational number.")

    def __init__(self, fails_at=None, error=None):
        self.calls, self.fails_at, self.error = 0, fails_at, error

    def retrieve(self, texts, top_k):
        self.calls += 1
        if self.calls == self.fails_at:
            raise self.error
        neighbors = [Neighbor(row, text, float(row)) for row, text in enumerate(self.texts)]
        return [neighbors[:top_k] for _ in texts]


def tensors_of(model):
    """Every parameter and buffer, by its place, non-persistent and tied ones too."""
    return {
        f"{path}.{name}": tensor
        for path, module in model.named_modules(remove_duplicate=False)
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    }


def bits(tensor):
    return tensor.detach().numpy().tobytes()


class State:
    """What must be as it was: tensors to the bit, modes and rates of every module, the configuration, generators."""

    def __init__(self, model):
        self.tensors = {name: bits(tensor) for name, tensor in tensors_of(model).items()}
        self.attributes = {
            (path, name): value
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, bool | int | float)
        }
        self.attributes |= {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.config = copy.deepcopy(model.config.to_dict())
        self.random = (random.getstate(), str(np.random.get_state()), bits(torch.get_rng_state()))

    def changes(self, model):
        now = State(model)
        return [
            *(name for name, value in self.tensors.items() if now.tensors.get(name) != value),
            *(name for name in now.tensors if name not in self.tensors),
            *(name for name, value in self.attributes.items() if now.attributes[name] != value),
            *(name for name, value in self.config.items() if now.config[name] != value),
            *(["random generators"] if now.random != self.random else []),
            *(f"gradient of {name}" for name, parameter in model.named_parameters() if parameter.grad is not None),
        ]


class Witness(TrainerCallback):
    """Notes which tensors a step has changed: that a model is as before proves something only if it was not."""

    def __init__(self, model):
        self.before = {name: bits(tensor) for name, tensor in tensors_of(model).items()}
        self.changed = set()

    def on_step_end(self, args, state, control, model, **kwargs):
        now = tensors_of(model)
        self.changed |= {name for name, before in self.before.items() if bits(now[name]) != before}


class RaiseAt(TestTimeCallback):
    """Raises an error at the n-th time of an event."""

    def __init__(self, event, count, error):
        self.left, self.error = count, error
        setattr(self, event, self.count)

    def count(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error


def raise_at(function, count, error):
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            raise error
        return function(*args, **kwargs)

    return wrapped


def scramble_generators():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1234)
    random.random(), np.random.rand(3), torch.rand(5)


def with_rates(name, tokenizer, rate):
    """A tiny model with every dropout rate of its configuration at `rate`; its weights do not depend on it."""
    config = CONFIGS[name](len(tokenizer))
    rates = [key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float)]
    assert rates
    for key in rates:
        setattr(config, key, rate)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def with_lora(model, name, rate=0.1):
    torch.manual_seed(2)
    lora = LoraConfig(r=2, target_modules=LORA_TARGETS[name], lora_dropout=rate, fan_in_fan_out=name == "gpt2")
    return get_peft_model(model, lora)


def made_odd(model):
    """Give a model buffers that its forward pass changes in place or replaces, odd values, and modes of all sorts."""
    model.register_buffer("noise", torch.tensor([math.nan, -0.0, 1.0]), persistent=False)
    model.register_buffer("flags", torch.tensor([True, False]), persistent=False)
    model.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    model.register_buffer("nothing", None)

    def change_buffers(module, inputs):
        module.noise.mul_(-2)
        module.flags.logical_not_()
        module.calls = module.calls + 1  # another tensor in its place

    model.register_forward_pre_hook(change_buffers)
    model.train()
    next(model.children()).eval()
    scramble_generators()
    return model


@pytest.fixture
def make(make_trainer):
    """Make a trainer of an odd model whose changes are witnessed."""

    def make(model, callbacks=(), **overrides):
        witness = Witness(model)
        defaults = {"retriever": ListRetriever(), "num_neighbors": 2, "eval_dataset": DOCUMENTS, "logging_steps": 1}
        trainer = make_trainer(model=model, callbacks=[witness, *callbacks], **{**defaults, **overrides})
        trainer.witness = witness
        return trainer

    return make


def run(trainer, action):
    if action == "evaluate":
        trainer.evaluate()
    elif action == "predict":
        trainer.predict(DOCUMENTS)
    else:
        with trainer.adapt(DOCUMENTS[0]) as model:
            assert model is trainer.model
            now = {name: bits(parameter) for name, parameter in model.named_parameters()}
            assert any(now[name] != trainer.witness.before[name] for name in now), "inside, it is adapted"


# --- whole runs ---


@pytest.mark.parametrize("action", ["evaluate", "predict", "adapt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_leaves_as_it_came(make, tokenizer, name, action):
    model = made_odd(with_rates(name, tokenizer, 0.1))
    trainer, before = make(model), State(model)
    run(trainer, action)
    assert before.changes(model) == []
    assert not trainer.optimizer.state
    trained = {name for name, tensor in tensors_of(model).items() if isinstance(tensor, torch.nn.Parameter)}
    # a key's bias shifts all scores of a query by the same number, so that softmax gives it no gradient but rounding
    assert trained - trainer.witness.changed <= {name for name in trained if "k_proj.bias" in name}
    assert {".noise", ".calls"} <= trainer.witness.changed


@pytest.mark.parametrize("action", ["evaluate", "adapt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_of_a_peft_model_only_adapters_are_copied_and_changed(make, tokenizer, name, action):
    model = with_lora(with_rates(name, tokenizer, 0.1), name).train()
    adapters = {key for key in tensors_of(model) if "lora_" in key}
    scramble_generators()
    trainer, before = make(model), State(model)
    run(trainer, action)
    assert before.changes(model) == []
    assert not trainer.optimizer.state
    assert trainer.witness.changed == adapters
    copied = sum(tensor.numel() for tensor in Snapshot(model).parameters)
    assert copied == sum(tensors_of(model)[key].numel() for key in adapters)


def test_virtual_tokens_of_prompt_tuning_are_restored_and_take_room_in_the_context(make, model):
    model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    trainer = make(model, max_length=1000, query="document", eval_dataset=[DOCUMENTS[0] * 10])
    assert trainer.max_length == 64 - 4
    before = State(model)
    trainer.evaluate()
    assert before.changes(model) == []
    assert trainer.witness.changed == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trainer.records[0].nll[0] != trainer.records[0].nll[1]


def test_use_cache_is_off_in_training_only(make, model):
    seen = []

    class UseCache(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append(model.config.use_cache)

    assert model.config.use_cache is True
    trainer = make(model, [UseCache()])
    assert model.config.use_cache is True, "making the trainer leaves it"
    trainer.evaluate()
    assert seen == [False] * 4
    assert model.config.use_cache is True
    with trainer.adapt(DOCUMENTS[0]):
        assert model.config.use_cache is True, "generation wants its cache"


def test_modes_and_generators_inside_adapt_are_those_of_generation(make, model):
    model = made_odd(model)
    trainer, before = make(model), State(model)
    with trainer.adapt(DOCUMENTS[0]):
        assert not any(module.training for module in model.modules())
        assert State(model).random == before.random, "sampling inside does not depend on the training"
        torch.rand(1), random.random(), np.random.rand()
    assert before.changes(model) == []


def test_an_optimizer_of_the_users_own_leaves_fresh_and_with_its_rate(make_trainer, tokenizer, model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9)
    arguments = make_trainer(num_neighbors=2, lr_scheduler_type="linear").args
    trainer = tttnn.TestTimeTrainer(
        model, arguments, ListRetriever(), processing_class=tokenizer, optimizers=(optimizer, None)
    )
    witness, before = Witness(model), State(model)
    trainer.add_callback(witness)
    trainer.evaluate(DOCUMENTS)
    assert before.changes(model) == []
    assert witness.changed
    assert not optimizer.state
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]


def test_a_carried_optimizer_is_not_carried_from_one_evaluation_to_the_next(make, model):
    trainer = make(model, reset_optimizer=False)
    first = trainer.evaluate()
    assert not trainer.optimizer.state
    second = trainer.evaluate()
    assert first["eval_bits_per_byte"] == second["eval_bits_per_byte"]


# --- errors ---

# phase -> at which call the error comes. All but those before the first step come after a step changed the weights.
PHASES = {
    "retrieve": 2,
    "score": 2,
    "training_step": 2,
    "data_collator": 2,
    "optimizer.step": 2,
    "lr_scheduler": 3,  # after that of the check before the first document
    "log": 2,
    "compute_metrics": 1,
    "on_train_begin": 2,
    "on_document_begin": 2,
    "on_step_begin": 2,
    "on_substep_end": 2,
    "on_pre_optimizer_step": 2,
    "on_optimizer_step": 2,
    "on_step_end": 1,
    "on_log": 1,
    "on_document_end": 1,
    "on_train_end": 1,
    "on_evaluate": 1,
}


@pytest.mark.parametrize("error", [RuntimeError("from the test"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("phase", PHASES)
def test_an_error_in_any_phase_of_evaluate_restores_the_model(make, model, monkeypatch, phase, error):
    model, count = made_odd(model), PHASES[phase]
    accumulation = 2 if phase == "on_substep_end" else 1
    overrides = {"gradient_accumulation_steps": accumulation}
    if phase == "retrieve":
        overrides["retriever"] = ListRetriever(count, error)
    callbacks = [RaiseAt(phase, count, error)] if phase.startswith("on_") else []
    trainer = make(model, callbacks, **overrides)
    if phase == "score":
        monkeypatch.setattr(tttnn.adaptation.episode, "score", raise_at(tttnn.adaptation.episode.score, count, error))
    elif phase == "optimizer.step":
        trainer.create_optimizer()
        trainer.optimizer.step = raise_at(trainer.optimizer.step, count, error)
    elif phase == "lr_scheduler":
        trainer.create_scheduler = raise_at(trainer.create_scheduler, count, error)
    elif phase == "compute_metrics":
        trainer.compute_metrics = raise_at(lambda prediction: {}, count, error)
    elif hasattr(trainer, phase):
        setattr(trainer, phase, raise_at(getattr(trainer, phase), count, error))
    before = State(model)
    with pytest.raises(type(error)) as caught:
        trainer.evaluate()
        trainer.evaluate()  # for errors in an event that comes once in an evaluation, and must come after a step
    assert caught.value is error
    assert before.changes(model) == []
    assert not trainer.optimizer.state
    assert trainer.witness.changed, "the error came before a step"


@pytest.mark.parametrize(
    "phase",
    ["retrieve", "on_train_begin", "on_document_begin", "on_step_end", "on_document_end", "body", "on_train_end"],
)
def test_an_error_in_any_phase_of_adapt_restores_the_model(make, model, phase):
    model, error = made_odd(model), KeyboardInterrupt()
    retriever = ListRetriever(2, error)
    callbacks = [RaiseAt(phase, 2, error)] if phase.startswith("on_") else []
    trainer = make(model, callbacks, retriever=retriever if phase == "retrieve" else ListRetriever())
    before = State(model)
    with pytest.raises(KeyboardInterrupt) as caught:
        for _ in range(2):  # the second time, so that a step has been before it
            with trainer.adapt(DOCUMENTS[0]):
                if phase == "body":
                    raise error
    assert caught.value is error
    assert before.changes(model) == []
    assert not trainer.optimizer.state
    assert trainer.witness.changed


class HalfStep(torch.optim.AdamW):
    """Is interrupted by Ctrl-C when half of the parameters have been changed, at its second step."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps == 1:
            return super().step(closure)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.no_grad():
            for parameter in parameters[: len(parameters) // 2]:
                parameter.add_(parameter.grad, alpha=100.0)
                self.state[parameter]["exp_avg"].add_(1.0)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("action", ["evaluate", "adapt"])
def test_ctrl_c_in_the_middle_of_an_optimizer_step_restores_the_model(make, model, action):
    model = made_odd(model)
    trainer = make(model)
    trainer.optimizer_cls_and_kwargs = (HalfStep, {"lr": 1e-3})
    before = State(model)
    with pytest.raises(KeyboardInterrupt):
        run(trainer, action)
    assert before.changes(model) == []
    assert not trainer.optimizer.state
    assert trainer.witness.changed


def foreach_copy_interrupted_once(copy_all):
    calls = 0

    def interrupted(tensors, copies):
        nonlocal calls
        calls += 1
        if calls == 1:
            copy_all(tensors[: len(tensors) // 2], copies[: len(copies) // 2])
            signal.raise_signal(signal.SIGINT)
        copy_all(tensors, copies)

    return interrupted


@pytest.mark.parametrize("place", ["weights", "generators"])
def test_a_second_ctrl_c_inside_the_restore_does_not_leave_half_of_it(make, model, monkeypatch, place):
    model = made_odd(model)
    trainer = make(model)
    trainer.optimizer_cls_and_kwargs = (HalfStep, {"lr": 1e-3})
    before = State(model)
    if place == "weights":
        monkeypatch.setattr(torch, "_foreach_copy_", foreach_copy_interrupted_once(torch._foreach_copy_))
    else:
        # one call belongs to seeding: NumPy's state is set by the restore alone
        monkeypatch.setattr(np.random, "set_state", raise_at(np.random.set_state, 1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    assert before.changes(model) == []
    assert not trainer.optimizer.state
    assert trainer.witness.changed


def test_ctrl_c_in_the_restore_between_two_documents_leaves_the_model_whole(make, model, monkeypatch):
    trainer, before = make(model), State(model)
    monkeypatch.setattr(torch, "_foreach_copy_", foreach_copy_interrupted_once(torch._foreach_copy_))
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    assert before.changes(model) == []
    assert trainer.witness.changed


def lines_run(action, witness):
    """How often each line of the modules that train and restore is run, of those that run after a step."""
    lines, late = Counter(), set()
    files = {tttnn.adaptation.restore.__file__, tttnn.adaptation.steps.__file__}

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in files:
            return None
        before, source = (
            linecache.getline(frame.f_code.co_filename, frame.f_lineno - back).strip() for back in (1, 0)
        )
        # whoever is interrupted on the way into a clean-up, before its first line, cannot know
        if event == "line" and not source.startswith(("try:", "with ")) and before != "finally:":
            lines[frame.f_code.co_filename, frame.f_lineno] += 1
            if witness.changed:
                late.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    others = sys.gettrace()  # for example that of coverage
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(others)
    return {place: count for place, count in lines.items() if place in late}


def interrupt_at(place, count, action):
    """Run `action`, with Ctrl-C when a line is about to be run for the `count`-th time."""

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != place[0]:
            return None
        if event == "line" and frame.f_lineno == place[1]:
            count -= 1
            if count == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    others = sys.gettrace()  # for example that of coverage
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(others)


@pytest.mark.parametrize("action", ["evaluate", "adapt"])
def test_ctrl_c_at_any_line_of_training_and_restoring_leaves_the_model_as_it_came(make_trainer, model, action):
    scramble_generators()
    witness = Witness(model)
    trainer = make_trainer(retriever=ListRetriever(), num_neighbors=1, callbacks=[witness], max_length=8)

    def act():
        if action == "evaluate":
            trainer.evaluate(["The whale"])
        else:
            with trainer.adapt("The whale"):
                pass

    act()  # what is made once, the optimizer, is made here
    witness.changed.clear()
    lines, before = lines_run(act, witness), State(model)
    assert len(lines) > 30
    faults = []
    for (file, line), count in lines.items():
        with pytest.raises(KeyboardInterrupt):
            # the last time: what puts things in order comes at the end
            interrupt_at((file, line), count, act)
        changes = before.changes(model) + (["optimizer"] if trainer.optimizer.state else [])
        if changes:
            faults.append(f"{Path(file).name}:{line}: {changes[:3]}")
            break  # what is wrong now stays wrong
    assert faults == []


# --- losses that are no numbers ---


@pytest.mark.parametrize("action", ["evaluate", "adapt"])
def test_a_nan_loss_restores_the_model_and_says_so(make, model, action):
    model = made_odd(model)
    trainer = make(model)
    step = trainer.training_step
    trainer.training_step = lambda *inputs: step(*inputs) * (math.nan if trainer.witness.changed else 1.0)
    before = State(model)
    with pytest.raises(RuntimeError, match=r"training loss of document 0 .* is nan: training diverged.*restored"):
        run(trainer, action)
    assert before.changes(model) == []
    assert not trainer.optimizer.state
    assert trainer.witness.changed


def test_training_that_diverges_restores_the_model_and_says_so(make, model):
    trainer, before = make(model, learning_rate=1e30), State(model)
    with pytest.raises(RuntimeError, match=r"is (nan|inf): training diverged.*`learning_rate`"):
        trainer.evaluate()
    assert before.changes(model) == []
    assert trainer.witness.changed


def test_a_score_that_is_not_finite_restores_the_model_and_says_so(make, model):
    # one neighbor: its loss is finite, and only the score after its step is not
    trainer, before = make(model, learning_rate=1e30, num_neighbors=1), State(model)
    with pytest.raises(RuntimeError, match=r"score of document 0 .* is (nan|inf)"):
        trainer.evaluate()
    assert before.changes(model) == []
    assert trainer.witness.changed


def test_adapt_does_not_hand_out_a_model_whose_last_step_left_no_numbers(make, model):
    trainer, before = make(model, learning_rate=1e38, num_neighbors=1), State(model)
    with pytest.raises(RuntimeError), trainer.adapt(DOCUMENTS[0]):
        pass
    assert before.changes(model) == []


# --- dropout ---


def scores(make, model, **overrides):
    trainer = make(model, **overrides)
    trainer.evaluate()
    return [record.nll for record in trainer.records]


@pytest.mark.parametrize("name", CONFIGS)
def test_disabled_dropout_is_off_in_modules_and_in_functions(make, tokenizer, name):
    model, without = with_rates(name, tokenizer, 0.5), with_rates(name, tokenizer, 0.0)
    first = scores(make, model, seed=1)
    assert first == scores(make, model, seed=2)
    assert first == scores(make, without, seed=3, disable_dropout=False)
    assert scores(make, model, seed=1, disable_dropout=False) != scores(make, model, seed=2, disable_dropout=False)


def test_disabled_dropout_is_off_in_lora_adapters(make, tokenizer):
    model = with_lora(with_rates("llama", tokenizer, 0.0), "llama", 0.5)
    without = with_lora(with_rates("llama", tokenizer, 0.0), "llama", 0.0)
    first = scores(make, model, seed=1)
    assert first == scores(make, model, seed=2) == scores(make, without, seed=3, disable_dropout=False)
    assert scores(make, model, seed=1, disable_dropout=False) != scores(make, model, seed=2, disable_dropout=False)


def test_dropout_of_one_seed_is_reproducible(make, tokenizer):
    model = with_rates("gpt2", tokenizer, 0.5)
    first = scores(make, model, seed=1, disable_dropout=False)
    torch.rand(7)
    assert first == scores(make, model, seed=1, disable_dropout=False)


# --- `restored` alone ---


def test_restored_brings_back_what_its_body_changed(model):
    model = made_odd(model)
    before = State(model)
    with pytest.raises(KeyError), restored(model):
        for parameter in model.parameters():
            parameter.data = torch.full_like(parameter, math.nan)
            parameter.grad = torch.ones_like(parameter)
            parameter.requires_grad = False
        model.noise = None
        model.calls.fill_(9)
        model.calls = torch.ones(3)
        model.eval()
        scramble_generators(), random.random()
        assert len(before.changes(model)) > 10
        raise KeyError("from the test")
    assert before.changes(model) == []


def test_the_snapshot_goes_back_as_often_as_wanted(model):
    before = State(model)
    with restored(model) as snapshot:
        for value in (1.0, math.inf):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(value)
            assert before.changes(model)
            snapshot.restore()
            assert before.changes(model) == []


def test_restored_keeps_ties_between_tensors(tokenizer):
    model = with_rates("qwen2", tokenizer, 0.0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with restored(model), torch.no_grad():
        model.lm_head.weight.zero_()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.abs().sum() > 0


def test_a_buffer_that_is_an_expanded_view_is_restored(model):
    model.register_buffer("expanded", torch.ones(1).expand(4), persistent=False)
    with restored(model), torch.no_grad():
        model.expanded = torch.zeros(4)
        model.lm_head.weight.zero_()
    assert model.expanded.tolist() == [1.0] * 4
    assert model.lm_head.weight.abs().sum() > 0


def test_frozen_parameters_are_not_copied(model):
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.lm_head.weight.requires_grad = True
    assert [copy.shape for copy in Snapshot(model).copies if copy.dim()] == [model.lm_head.weight.shape]
