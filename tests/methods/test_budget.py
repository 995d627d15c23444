"""One dial: which row of a curve is chosen, what a token costs, and what a trainer gets."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import CurveRow, Tuning
from tttnn.methods import (
    METHODS,
    Speed,
    choose_budget,
    choose_row,
    default_curve,
    measure_speed,
    parse_budget,
    with_budget,
)


def row(method, bits_per_byte, read, trained, **settings):
    return CurveRow(method, settings, bits_per_byte, bits_per_byte - 1.0, None, read, trained, None)


PREFIX = row("prefix", 1.0, 100, 0)
CONTEXT = row("context", 0.98, 200, 0, num_neighbors=4)
ONE, TWO, THREE = (row("ttt", score, 100, 50 * n, num_neighbors=n) for n, score in ((1, 0.95), (2, 0.93), (3, 0.91)))
BOTH = row("context+ttt", 0.92, 200, 150, num_neighbors=3)
ROWS = [PREFIX, CONTEXT, ONE, TWO, THREE, BOTH]
CURVE = Tuning("curve.json", None, None, 24, 42, {}, {}, ROWS)
# seconds: 1, 2, 2, 3, 4 and 5
SPEED = Speed(read=0.01, trained=0.02)


@pytest.fixture
def args(tmp_path):
    return TestTimeTrainingArguments(
        output_dir=str(tmp_path / "run"), max_length=16, learning_rate=1e-3, use_cpu=True, disable_tqdm=True
    )


@pytest.fixture
def fixed_speed(monkeypatch):
    monkeypatch.setattr("tttnn.methods.budget.measure_speed", lambda *parts: SPEED)


def test_seconds_are_those_of_tokens_read_and_trained():
    assert [SPEED.predict(row) for row in ROWS] == pytest.approx([1, 2, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("best", THREE),
        ("fast", ONE),  # half of 0.09 is 0.045: a gain of 0.02 is too little, and 0.05 enough
        ("balanced", TWO),  # two thirds of 0.09 are 0.06: a gain of 0.05 is too little, and 0.07 enough
        (1.5, PREFIX),
        (2.5, ONE),  # beside context, which costs as much and gains less
        (3.5, TWO),
        (100.0, THREE),
    ],
)
def test_the_row_of_a_budget(budget, expected):
    assert choose_row(budget, ROWS, PREFIX, SPEED) is expected


@pytest.mark.parametrize("budget", ["best", "balanced", 10.0])
def test_nothing_is_spent_where_nothing_is_gained(budget):
    worse = row("ttt", 1.1, 100, 50)
    assert choose_row(budget, [worse, PREFIX], PREFIX, SPEED) is PREFIX


def test_of_rows_that_gain_the_same_the_cheapest_is_chosen():
    dear, cheap = (row("ttt", 0.9, 100, tokens) for tokens in (80, 20))
    assert choose_row("best", [dear, cheap], PREFIX, SPEED) is cheap


def test_too_few_seconds_are_told_with_what_the_cheapest_takes():
    with pytest.raises(ValueError, match="is 0.5 seconds per document, and the cheapest choice, prefix, takes 1 here"):
        choose_row(0.5, ROWS, PREFIX, SPEED)


@pytest.mark.parametrize("budget", ["quick", "-1", 0, -2.0, math.nan, "nan", "inf", "", None, []])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(ValueError, match="Pass seconds per document, above 0, or one of fast, balanced, best"):
        parse_budget(budget)


@pytest.mark.parametrize(("budget", "value"), [("fast", "fast"), ("2.5", 2.5), (3, 3.0)])
def test_a_budget_is_a_word_or_seconds(budget, value):
    assert parse_budget(budget) == value


# the probe


def test_the_probe_leaves_the_model_and_the_generators_as_they_were(model, tokenizer, args):
    model.train()
    before, config = copy.deepcopy(model.state_dict()), dict(vars(model.config))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    speed = measure_speed(model, tokenizer, args)
    assert min(speed) > 0
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"`{name}` was not restored"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert dict(vars(model.config)) == config
    assert (args.learning_rate, args.disable_tqdm, args.logging_strategy) == (1e-3, True, "steps")


def test_the_probe_reads_and_trains_chunks_of_max_length(model, tokenizer, args):
    calls = []
    with model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((torch.is_grad_enabled(), kwargs["input_ids"].numel())),
        with_kwargs=True,
    ):
        measure_speed(model, tokenizer, args)
    # a window of 16 tokens reads 15 and predicts 15; the calls before are those of a new trainer
    assert calls[-4:] == [(False, 15)] * 2 + [(True, 16)] * 2


def test_the_probe_serves_a_vocabulary_without_letters(args):
    digits = Tokenizer(BPE({"<s>": 0, "1": 1, "2": 2}, []))  # other signs have no token
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=digits, bos_token="<s>")
    assert tokenizer("the whale")["input_ids"] == []
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_positions=32, n_embd=8, n_layer=1, n_head=1))
    assert min(measure_speed(model, tokenizer, args)) > 0


def test_the_probe_is_in_the_precision_of_the_arguments(model, tokenizer, tmp_path):
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), max_length=16, bf16=True, use_cpu=True)
    dtypes = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    measure_speed(model, tokenizer, args)
    handle.remove()
    assert dtypes[-4:] == [torch.bfloat16] * 4


# what a user gets


def test_a_choice_says_what_it_is_and_why(model, tokenizer, args, fixed_speed):
    choice = choose_budget("balanced", model, tokenizer, args, CURVE)
    assert (choice.method, choice.settings) == ("ttt", {"num_neighbors": 2})
    assert choice.reason == (
        "Budget balanced: ttt (num_neighbors 2), the cheapest with two thirds of the best gain in 'curve.json'. "
        "Predicted: 3 seconds in the model per document."
    )


def test_methods_restrict_the_choice(model, tokenizer, args, fixed_speed):
    assert choose_budget("best", model, tokenizer, args, CURVE, ["context"]).method == "context"
    with pytest.raises(ValueError, match="'curve.json' has no row of the method knn-lm, but of prefix, context, ttt"):
        choose_budget("best", model, tokenizer, args, CURVE, ["knn-lm"])


def test_a_method_that_needs_more_than_a_budget_knows_is_refused(model, tokenizer, args, fixed_speed):
    assert choose_budget("best", model, tokenizer, args).method == "ttt", "though experts cost less"
    with pytest.raises(ValueError, match="The method 'experts' needs `experts`, which a budget does not know"):
        with_budget("best", model, tokenizer, args, method="experts")


def test_a_curve_of_another_model_is_refused(model, tokenizer, args, fixed_speed):
    model.config._name_or_path = "gpt2"
    curve = Tuning("curve.json", "gpt2-large", None, 24, 42, {}, {}, ROWS)
    with pytest.raises(ValueError, match="measured with the model 'gpt2-large'"):
        choose_budget("best", model, tokenizer, args, curve)


def test_a_curve_of_another_index_is_refused_by_the_trainer(model, tokenizer, args, retriever, fixed_speed):
    curve = Tuning("curve.json", None, "0123", 24, 42, {}, {}, ROWS)
    method, chosen = with_budget("best", model, tokenizer, args, curve=curve)
    with pytest.raises(ValueError, match="'curve.json' was measured on the index 0123"):
        TestTimeTrainer(model, chosen, retriever, method=method, processing_class=tokenizer)


@pytest.mark.parametrize("setting", [{"prompt": "none"}, {"query": "document"}])
def test_a_budget_for_scores_without_the_prompt_is_refused(model, tokenizer, tmp_path, fixed_speed, setting):
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **setting)
    told = "`prompt` is 'none': curves are measured with the prompt in context"
    with pytest.raises(ValueError, match=told):
        choose_budget("best", model, tokenizer, args, CURVE)
    with pytest.raises(ValueError, match=told):
        with_budget("best", model, tokenizer, curve=CURVE, use_cpu=True, **{"prompt": "none", **setting})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_index": True}, "'trust_index', which is no option of the method context"),
        ({"context_length": -1}, "an option that cannot be: `context_length` is -1"),
        ({"context_length": "all"}, "an option that cannot be"),
    ],
)
def test_options_that_are_no_options_of_the_method_are_refused(model, tokenizer, args, fixed_speed, options, message):
    forged = CurveRow("context", {}, 0.5, -0.5, None, 100, 0, None, options)
    curve = Tuning("curve.json", None, None, 24, 42, {}, {}, [PREFIX, forged])
    with pytest.raises(ValueError, match=message):
        choose_budget("best", model, tokenizer, args, curve)


def test_a_budget_makes_a_method_and_arguments(model, tokenizer, args, fixed_speed):
    method, chosen = with_budget("best", model, tokenizer, args, curve=CURVE)
    assert (method.name, chosen.num_neighbors, chosen.learning_rate, chosen.max_length) == ("ttt", 3, 1e-3, 16)
    assert args.num_neighbors == 20
    method, chosen = with_budget("best", model, tokenizer, args, curve=CURVE, method="context", num_neighbors=2)
    assert (method.name, chosen.num_neighbors) == ("context", 2)


def test_an_override_that_leaves_nothing_of_a_choice_is_refused(model, tokenizer, args, fixed_speed):
    with pytest.raises(ValueError, match="`mix` is 'none', and the budget chose context .*Leave `mix` out"):
        with_budget("fast", model, tokenizer, args, mix="none")


@pytest.mark.parametrize(
    ("override", "expected"),
    [({"learning_rate": 1e-5}, "ttt"), ({"order": "farthest"}, "ttt"), ({"top_k": 50}, "context")],
)
def test_an_override_leaves_out_methods_without_it(model, tokenizer, args, fixed_speed, override, expected):
    assert with_budget("fast", model, tokenizer, args)[0].name == "context"
    method, chosen = with_budget("fast", model, tokenizer, args, **override)
    assert method.name == expected
    assert vars(chosen).items() >= override.items()
    same = {name: getattr(args, name) for name in override}
    assert with_budget("fast", model, tokenizer, args, **same)[0].name == "context", "what it is anyway"


def test_what_a_budget_makes_evaluates_and_adapts(model, tokenizer, args, retriever, documents):
    method, chosen = with_budget(1000, model, tokenizer, args, curve=CURVE, method="ttt")
    trainer = TestTimeTrainer(model, chosen, retriever, method=method, processing_class=tokenizer)
    trainer.evaluate(documents)
    assert all(len(record.neighbor_ids) == 3 for record in trainer.records)
    with trainer.adapt(documents[0]):
        assert len(trainer.adaptation.train_loss) == 3


def test_the_curve_of_a_preset_is_used(model, tokenizer, args, fixed_speed):
    args.tuning = CURVE
    choice = choose_budget("best", model, tokenizer, args)
    assert "'curve.json'" in choice.reason


def test_the_default_curve_names_methods_that_there_are(model, tokenizer, args, fixed_speed):
    curve = default_curve()
    assert {row.method for row in curve.curve} == {"prefix", "context", "experts", "ttt"} < set(METHODS)
    choice = choose_budget("best", model, tokenizer, args)
    assert "in the default curve" in choice.reason


@pytest.mark.parametrize("budget", ["fast", "balanced", "best"])
def test_each_word_of_the_default_curve_evaluates(model, tokenizer, args, retriever, documents, fixed_speed, budget):
    method, chosen = with_budget(budget, model, tokenizer, args, num_neighbors=2, max_length=16)
    trainer = TestTimeTrainer(model, chosen, retriever, method=method, processing_class=tokenizer)
    trainer.evaluate(documents)
    assert chosen.mix == {"fast": "cache"}.get(budget, "both")
    assert all((record.num_trained_tokens > 0) == (budget == "best") for record in trainer.records)
    if budget == "fast":
        assert method.context.context_length == 0  # a method's own option
