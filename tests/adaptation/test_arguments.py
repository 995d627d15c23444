"""Arguments: defaults of test-time training, presets, and what is refused."""

import dataclasses
import functools
import json
import math

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from tttnn import TestTimeTrainingArguments
from tttnn.adaptation.arguments import UNSUPPORTED


def make(**settings):
    return TestTimeTrainingArguments(use_cpu=True, **settings)


def parse(line):
    (args,) = HfArgumentParser(TestTimeTrainingArguments).parse_args_into_dataclasses([*line.split(), "--use_cpu"])
    return args


def test_defaults_are_those_of_the_design():
    args = make()
    expected = {
        "num_neighbors": 20,
        "top_k": None,
        "order": "nearest",
        "query": "prefix",
        "max_length": 1024,
        "max_distance": None,
        "chunks_per_neighbor": 1,
        "score_every_neighbor": False,
        "reset_optimizer": True,
        "disable_dropout": True,
        "drop_near_copies": False,
        "exclude": None,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 4,
        "save_strategy": "no",
        "average_tokens_across_devices": False,
        "remove_unused_columns": False,
        "bf16": False,
        "fp16": False,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)


def test_the_preset_runs_what_the_authors_ran():
    """FACTS of the official code: AdamW without a schedule, 50 neighbors, all chunks, dropout on, state carried on."""
    args = TestTimeTrainingArguments.from_preset("tttlm", use_cpu=True)
    expected = {
        "num_neighbors": 50,
        "order": "nearest",
        "query": "document",
        "max_length": 1024,
        "max_distance": 4.0**2,  # 4.0 is Euclidean there, distances are squared here
        "chunks_per_neighbor": None,
        "score_every_neighbor": True,
        "reset_optimizer": False,
        "disable_dropout": False,
        "drop_near_copies": False,
        "optim": "adamw_torch",
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 1,
        "bf16": False,
        "fp16": False,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)


def test_a_preset_takes_other_values():
    args = TestTimeTrainingArguments.from_preset("tttlm", learning_rate=5e-6, max_length=2048, use_cpu=True)
    assert (args.learning_rate, args.max_length, args.num_neighbors) == (5e-6, 2048, 50)


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no preset 'ttt'. Pass one of 'tttlm'"):
        TestTimeTrainingArguments.from_preset("ttt")


NOT_REFUSED = functools.partial(pytest.param)
REFUSED = [
    ({"num_neighbors": 0}, "`num_neighbors` is 0.*at least 1"),
    ({"num_neighbors": -3}, "`num_neighbors` is -3"),
    ({"num_neighbors": 2.5}, "`num_neighbors` is 2.5.*whole number"),
    ({"top_k": 0}, "`top_k` is 0"),
    ({"top_k": 3, "num_neighbors": 4}, "`top_k` is 3, fewer than the 4 of `num_neighbors`. Raise it, or leave it"),
    ({"max_length": 0}, "`max_length` is 0"),
    # a chunk of one token has no token to predict: nothing would be trained
    NOT_REFUSED({"max_length": 1}, "`max_length` is 1"),
    ({"chunks_per_neighbor": 0}, "`chunks_per_neighbor` is 0"),
    ({"chunks_per_neighbor": "none"}, "`chunks_per_neighbor` is 'none'"),
    ({"num_train_epochs": 1.5}, "`num_train_epochs` is 1.5.*whole number"),
    NOT_REFUSED({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` is 0"),
    NOT_REFUSED({"gradient_accumulation_steps": -1}, "`gradient_accumulation_steps` is -1"),
    NOT_REFUSED({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` is 0"),
    ({"per_device_train_batch_size": 2}, "`per_device_train_batch_size` is 2.*set `gradient_accumulation_steps`"),
    ({"order": "closest"}, "`order` is 'closest'. Pass one of 'nearest', 'farthest', 'random'"),
    ({"query": "suffix"}, "`query` is 'suffix'. Pass one of 'prefix', 'document'"),
    ({"max_distance": -1.0}, "`max_distance` is -1.0.*at least 0"),
    ({"max_distance": math.nan}, "`max_distance` is nan"),
    ({"seed": -1}, "`seed` is -1. Pass 0 to 4294967295"),
    ({"seed": 1 << 32}, "`seed` is 4294967296"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_a_value_out_of_range_is_refused_with_what_was_given(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("name", ["num_neighbors", "top_k", "max_length", "chunks_per_neighbor"])
def test_a_number_that_is_written_as_a_float_is_that_number_or_refused(name):
    try:
        args = make(**{name: 32.0})
    except (TypeError, ValueError) as error:
        assert name in str(error)
    else:
        assert isinstance(getattr(args, name), int)


UNSUPPORTED_VALUES = {
    "max_steps": 5,
    "eval_strategy": "epoch",
    "eval_on_start": True,
    "fp16_full_eval": True,
    "bf16_full_eval": True,
    "use_liger_kernel": True,
    "neftune_noise_alpha": 0.1,
    "torch_compile": True,
    "auto_find_batch_size": True,
    "fsdp": "full_shard",
    "deepspeed": "config.json",
    "label_smoothing_factor": 0.1,
}


DEEPSPEED = pytest.param("deepspeed")


@pytest.mark.parametrize("name", [DEEPSPEED if name == "deepspeed" else name for name in UNSUPPORTED])
def test_an_argument_without_a_meaning_here_is_refused_with_what_to_do(name):
    try:
        with pytest.raises(ValueError) as caught:
            make(**{name: UNSUPPORTED_VALUES[name]})
    finally:
        unset_hf_deepspeed_config()  # what half-made arguments of Trainer's leave behind
    assert str(caught.value).startswith(f"`{name}` is ")
    assert UNSUPPORTED[name] in str(caught.value)


def test_every_unsupported_argument_is_one_of_trainer():
    assert set(UNSUPPORTED) <= {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_the_default_of_an_unsupported_argument_may_be_given(name):
    make(**{name: {field.name: field.default for field in dataclasses.fields(TrainingArguments)}[name]})


def test_every_argument_of_ours_has_one_default_and_one_help():
    inherited = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    ours = [field for field in dataclasses.fields(TestTimeTrainingArguments) if field != inherited.get(field.name)]
    assert {"num_neighbors", "chunks_per_neighbor", "learning_rate"} <= {field.name for field in ours}
    for field in ours:
        if field.name in TestTimeTrainingArguments.__annotations__:
            assert field.metadata["help"], field.name
            assert field.default is not dataclasses.MISSING, field.name


def test_candidates_are_as_many_as_neighbors_and_twice_with_a_filter():
    assert make(num_neighbors=7).num_candidates == 7
    assert make(num_neighbors=7, exclude="id").num_candidates == 14
    assert make(num_neighbors=7, drop_near_copies=True).num_candidates == 14
    assert make(num_neighbors=7, exclude="id", top_k=9).num_candidates == 9


def test_bfloat16_runs_on_a_machine_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = TestTimeTrainingArguments(bf16=True)
    assert (args.use_cpu, args.device.type) == (True, "cpu")


def test_without_mixed_precision_the_device_is_left_to_transformers(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert not TestTimeTrainingArguments().use_cpu


# --- command lines and files ---


def test_a_command_line_sets_them():
    args = parse("--num_neighbors 5 --order random --max_distance 3.5 --exclude source --top_k 8 --learning_rate 1e-4")
    assert (args.num_neighbors, args.order, args.max_distance, args.exclude) == (5, "random", 3.5, "source")
    assert (args.top_k, args.learning_rate) == (8, 1e-4)


@pytest.mark.parametrize(("line", "expected"), [("all", None), ("1", 1), ("12", 12)])
def test_a_command_line_says_how_many_chunks(line, expected):
    chunks = parse(f"--chunks_per_neighbor {line}").chunks_per_neighbor
    assert chunks == expected
    assert chunks is None or type(chunks) is int


@pytest.mark.parametrize(
    ("line", "expected"), [("", True), ("--disable_dropout false", False), ("--no_disable_dropout", False)]
)
def test_a_command_line_switches_off(line, expected):
    assert parse(line).disable_dropout is expected


def test_a_command_line_with_a_choice_that_there_is_not_fails(capsys):
    with pytest.raises(SystemExit):
        parse("--order closest")
    assert "--order" in capsys.readouterr().err


def test_arguments_make_json(tmp_path):
    args = make(chunks_per_neighbor=None, num_neighbors=3)
    saved = json.loads(args.to_json_string())
    assert (saved["num_neighbors"], saved["chunks_per_neighbor"]) == (3, None)


def test_arguments_can_be_replaced():
    args = dataclasses.replace(make(num_neighbors=3), learning_rate=1.0)
    assert (args.num_neighbors, args.learning_rate) == (3, 1.0)


def test_making_arguments_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1e-5])
def test_a_rate_that_is_none_is_refused(rate, tmp_path):
    with pytest.raises(ValueError, match="`learning_rate` is .*. Pass a rate of at least 0"):
        TestTimeTrainingArguments(str(tmp_path), learning_rate=rate, use_cpu=True)
