"""The precision that is left open: bf16 where the device computes faster in it and scores a text alike."""

import copy
import itertools

import pytest
import torch
from conftest import TEXTS

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import choose_precision, precision
from tttnn.adaptation.precision import Probe, seconds_of


class Clock:
    """Gives made-up seconds of a pass in float32 and of one in bf16, and notes what it was asked for."""

    def __init__(self, plain=1.0, mixed=0.5):
        self.seconds, self.calls = {False: plain, True: mixed}, []

    def __call__(self, probe, bf16):
        self.calls.append((bf16, probe))
        seconds = self.seconds[bf16]
        return next(seconds) if isinstance(seconds, itertools.cycle) else seconds


@pytest.fixture(autouse=True)
def tiny_models_count(monkeypatch):
    monkeypatch.setattr(precision, "MIN_PARAMETERS", 0)


@pytest.fixture
def arguments(tmp_path):
    return TestTimeTrainingArguments(output_dir=str(tmp_path), max_length=32, use_cpu=True)


@pytest.fixture
def choose(model, tokenizer, arguments, monkeypatch):
    def choose(text=TEXTS[0], measure=None, **options):
        monkeypatch.setattr(precision, "seconds_of", measure or Clock())
        return choose_precision(model, tokenizer, arguments, text, **options)

    return choose


# --- arguments ---


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_the_word_and_the_flag_are_one_setting(name):
    assert getattr(TestTimeTrainingArguments(precision=name, use_cpu=name == "bf16"), name) is True


def test_nothing_is_left_open_in_python_by_default():
    args = TestTimeTrainingArguments()
    assert (args.precision, args.bf16, args.fp16, args.mixed_precision) == (None, False, False, "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float32", "bf16": True}, "`precision` is 'float32', and `bf16` is True. Pass one of them."),
        ({"precision": "auto", "bf16": True}, "`precision` is 'auto', and `bf16` is True"),
        ({"precision": "bf16", "fp16": True}, "`precision` is 'bf16', and `fp16` is True"),
        ({"precision": "float16"}, "`precision` is 'float16'. Pass one of 'auto', 'float32', 'bf16', 'fp16'"),
    ],
)
def test_values_that_disagree_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TestTimeTrainingArguments(**options)


def test_float32_is_not_overruled_by_a_launcher(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="'float32', and the launcher asks for bf16"):
        TestTimeTrainingArguments(precision="float32", use_cpu=True)


def test_a_trainer_refuses_a_precision_that_is_open(model, tokenizer, tmp_path):
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), precision="auto", use_cpu=True)
    with pytest.raises(ValueError, match="`precision` is 'auto', and is to be settled before"):
        TestTimeTrainer(model, args, processing_class=tokenizer)


# --- speed ---


def test_bf16_is_chosen_where_it_is_faster_and_scores_alike(choose):
    choice = choose(measure=Clock(1.0, 0.5))
    assert choice.precision == "bf16"
    assert "2.00 times as fast" in choice.reason
    assert "`--precision float32`" in choice.reason


@pytest.mark.parametrize(("mixed", "expected"), [(1 / 1.09, "float32"), (1 / 1.11, "bf16"), (2.0, "float32")])
def test_a_gain_of_a_tenth_is_asked_for(choose, mixed, expected):
    assert choose(measure=Clock(1.0, mixed)).precision == expected


def test_the_median_of_the_pairs_counts(choose):
    """After the pair that warms up: 2.0, 2.0 and 0.1 times as fast."""
    assert choose(measure=Clock(4.0, itertools.cycle([9.0, 2.0, 2.0, 40.0]))).precision == "bf16"


def test_pairs_take_turns(choose):
    clock = Clock()
    choose(measure=clock)
    assert [bf16 for bf16, _ in clock.calls] == [False, True, False, True, True, False, False, True]


def test_a_device_that_only_emulates_bf16_is_not_measured_further(choose):
    clock = Clock(1.0, 5.0)
    assert choose(measure=clock).precision == "float32"
    assert len(clock.calls) == 2


def test_a_step_has_the_length_of_a_chunk(choose, arguments):
    clock = Clock()
    choose(measure=clock)
    assert {(len(probe.token_ids), probe.trains) for _, probe in clock.calls} == {(32, True)}


def test_a_method_that_only_scores_is_timed_forward_only(choose, model):
    clock = Clock()
    choose(measure=clock, trains=False)
    assert {probe.trains for _, probe in clock.calls} == {False}


# --- score ---


def test_a_score_that_changes_too_much_leaves_float32(choose, monkeypatch):
    monkeypatch.setattr(precision, "TOLERANCE", 0.0)
    choice = choose()
    assert choice.precision == "float32"
    assert "nats per token" in choice.reason


def test_a_model_that_overflows_in_bf16_stays_in_float32(choose, model):
    def overflow(module, inputs, logits):
        return logits * torch.nan if torch.is_autocast_enabled("cpu") else logits

    handle = model.get_output_embeddings().register_forward_hook(overflow)
    choice = choose()
    handle.remove()
    assert choice.precision == "float32"
    assert "nan in bf16" in choice.reason


def test_a_model_without_operations_in_bf16_stays_in_float32(choose, model):
    def refuse(module, inputs, logits):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("expected scalar type Float but found BFloat16")

    handle = model.get_output_embeddings().register_forward_hook(refuse)
    choice = choose(measure=seconds_of)
    handle.remove()
    assert choice.precision == "float32"
    assert "expected scalar type Float but found BFloat16" in choice.reason


def test_without_a_text_there_is_no_check(choose):
    assert choose("") == ("float32", "Precision float32: there is no text on which bf16 could be checked.")


# --- what is left alone ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_another_precision_is_left_in_it(choose, model, dtype):
    model.to(dtype)
    assert (choose().precision, model.dtype) == ("float32", dtype)


def test_a_model_of_two_precisions_is_left_in_them(choose, model):
    model.get_input_embeddings().to(torch.bfloat16)
    assert "(bfloat16, float32)" in choose().reason


def test_a_small_model_is_not_timed(choose, monkeypatch):
    monkeypatch.setattr(precision, "MIN_PARAMETERS", 10**9)
    clock = Clock()
    assert choose(measure=clock).precision == "float32"
    assert clock.calls == []


@pytest.mark.parametrize("kind", ["mps", "npu"])
def test_a_device_on_which_nobody_tried_it_stays_in_float32(model, kind):
    device = torch.device(kind) if kind == "mps" else type("Device", (), {"type": kind})()
    assert precision._obstacle(model, device) == f"bf16 is not tried on the device {kind}"


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_must_compute_in_bf16(model, monkeypatch, able):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able or including_emulation)
    reason = precision._obstacle(model, torch.device("cuda"))
    assert reason == (None if able else "the GPU does not compute in bf16")


# --- the model afterwards ---


def test_the_probe_leaves_weights_modes_and_generators_to_the_bit(choose, model):
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    choose(measure=seconds_of)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_a_timed_step_goes_backward_through_the_model(model, tokenizer):
    """Paired with the test above: its hooks see the gradient that no weight keeps."""
    seen = []
    weight = next(model.parameters())
    handle = weight.register_hook(lambda gradient: seen.append(float(gradient.abs().sum())))
    seconds_of(Probe(model, [1, 2, 3, 4], True, None), True)
    seconds_of(Probe(model, [1, 2, 3, 4], False, None), True)
    handle.remove()
    assert len(seen) == 1
    assert seen[0] > 0


def test_the_output_layer_is_computed_as_the_trainer_does(model):
    """By rows in float32: the same loss as of all logits, by another way."""
    probe = Probe(model, [1, 2, 3, 4, 5], True, model.get_output_embeddings())
    rows = precision._loss(probe, False).item()
    logits = model(input_ids=torch.tensor([probe.token_ids])).logits[0, :-1].log_softmax(1)
    assert rows == pytest.approx(-logits[range(4), probe.token_ids[1:]].mean().item(), rel=1e-5)
