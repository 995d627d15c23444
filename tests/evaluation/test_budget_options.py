"""`--budget`: what may be chosen, what overrides it, and what it does to a run."""

import json
import re
import shutil

import pytest
from commands import run_main
from made_experts import made_experts

from tttnn.adaptation import CurveRow, Tuning
from tttnn.errors import InputError
from tttnn.evaluation import EvaluateArguments, parse_evaluation
from tttnn.files import write_json
from tttnn.methods import BudgetChoice, Speed


def row(method, bits_per_byte, trained, **settings):
    return CurveRow(method, settings, bits_per_byte, 0.0, None, 100, trained, None)


ROWS = [
    row("prefix", 1.0, 0),
    row("context", 0.98, 0, num_neighbors=2),
    row("ttt", 0.91, 150, num_neighbors=3, learning_rate=1e-3),
]


@pytest.fixture
def curve(tmp_path):
    settings = {"num_neighbors": 1, "max_length": 16}
    tuning = Tuning("curve.json", None, None, 24, 42, {}, settings, ROWS)
    write_json(tmp_path / "curve.json", tuning.to_json())
    return str(tmp_path / "curve.json")


def parse(*options):
    words = ["--model", "m", "--dataset", "d", "--index", "i", "--use-cpu", *map(str, options)]
    return parse_evaluation(EvaluateArguments, words, prog="tttnn evaluate")


TTT = BudgetChoice("ttt", {"num_neighbors": 3, "learning_rate": 1e-3}, {}, "")


def test_a_choice_settles_the_method_and_its_settings(curve):
    evaluation = parse("--budget", "best", "--preset", curve)
    assert evaluation.budget.methods == ["prefix", "context", "ttt"]
    settled = evaluation.budget.settle(TTT)
    args = settled.args
    assert (settled.method.name, settled.inputs.method, settled.budget) == ("ttt", "ttt", None)
    assert (args.num_neighbors, args.learning_rate, args.max_length) == (3, 1e-3, 16)


def test_experts_are_chosen_only_where_there_are_some(model, tmp_path):
    assert parse("--budget", "best").budget.methods == ["prefix", "context", "ttt"]
    folder = made_experts(tmp_path / "experts", model, "digest", 8)
    evaluation = parse("--budget", "best", "--experts", folder)
    assert evaluation.budget.methods == ["experts"]
    (row,) = [row for row in evaluation.budget.curve.curve if row.method == "experts"]
    settled = evaluation.budget.settle(BudgetChoice(row.method, row.settings, row.options, ""))
    assert settled.method.experts.num_experts == 3
    assert settled.args.mix == "both"


def test_options_override_what_a_budget_sets(curve):
    settled = parse("--budget", 2, "--preset", curve, "--num-neighbors", 5).budget.settle(TTT)
    assert (settled.args.num_neighbors, settled.args.learning_rate) == (5, 1e-3)


CACHE = BudgetChoice("context", {"num_neighbors": 2, "mix": "cache"}, {"context_length": 0}, "Budget fast: why.")


@pytest.mark.parametrize("mix", ["none", "unadapted"])
def test_an_override_that_leaves_nothing_of_a_choice_is_refused(mix):
    budget = parse("--budget", "fast", "--mix", mix).budget
    with pytest.raises(ValueError, match=f"`mix` is '{mix}', and the budget chose context .*Budget fast: why."):
        budget.settle(CACHE)


def test_an_override_that_gives_neighbors_another_use_is_taken():
    settled = parse("--budget", "fast", "--mix", "none", "--context-length", 8).budget.settle(CACHE)
    assert (settled.method.context.context_length, settled.args.mix) == (8, "none")


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        (["--method", "context"], ["context"]),
        (["--learning-rate", 1e-4], ["ttt"]),
        (["--num-neighbors", 4], ["context", "ttt"]),
        (["--trainable", "bias"], ["ttt"]),
        (["--max-length", 64], ["prefix", "context", "ttt"]),
    ],
)
def test_options_leave_out_the_methods_that_do_not_take_them(curve, options, methods):
    assert parse("--budget", "best", "--preset", curve, *options).budget.methods == methods


def test_a_method_without_neighbors_leaves_the_index_alone(curve):
    settled = parse("--budget", "best", "--preset", curve).budget.settle(BudgetChoice("prefix", {}, {}, ""))
    assert (settled.method.name, settled.index) == ("prefix", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "quick"], "`budget` is 'quick'. Pass seconds per document"),
        (["--budget=-3"], "`budget` is '-3'"),
        (["--budget", "nan"], "`budget` is 'nan'"),
        (["--budget", "fast", "--preset", "tttlm"], "`--preset tttlm` is published ones"),
        (["--budget", "fast", "--knn-k", 3], "'--knn-k' is no option of the method"),
        (["--budget", "fast", "--no-such-option", 3], "'--no-such-option' is no option of the method"),
    ],
)
def test_a_contradiction_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        parse(*options)


# runs


@pytest.fixture
def words(evaluation):
    """An evaluation without settings that a budget would set."""
    return [*evaluation[: evaluation.index("--num-neighbors")], "--use-cpu", "--limit", 1]


def settings_in(folder):
    return json.loads((folder / "journal-eval.jsonl").read_text().splitlines()[0])["settings"]


def test_a_run_takes_the_settings_of_its_budget_and_says_why(words, curve, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tttnn.methods.budget.measure_speed", lambda *parts: Speed(0.01, 0.02))
    told = []
    monkeypatch.setattr("tttnn.evaluation.run.logger.warning", told.append)
    assert run_main(*words, "--budget", "best", "--preset", curve) == 0
    settings = settings_in(tmp_path / "run")
    assert (settings["method"], settings["num_neighbors"], settings["learning_rate"]) == ("ttt", 3, 1e-3)
    assert [line for line in told if line.startswith("Budget best: ttt (num_neighbors 3, learning_rate 0.001)")]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (evaluation["arguments"]["method"], evaluation["arguments"]["budget"]) == ("ttt", "best")


def test_a_run_that_is_started_again_keeps_its_choice(words, curve, tmp_path, monkeypatch):
    budget = ("--budget", 5, "--preset", curve)
    monkeypatch.setattr("tttnn.methods.budget.measure_speed", lambda *parts: Speed(0.01, 0.02))
    assert run_main(*words, *budget) == 0  # 1 second is read, and 3 are trained
    journal = (tmp_path / "run" / "journal-eval.jsonl").read_bytes()
    monkeypatch.setattr("tttnn.methods.budget.measure_speed", lambda *parts: Speed(0.01, 10.0))
    assert run_main(*words, *budget) == 0
    assert (tmp_path / "run" / "journal-eval.jsonl").read_bytes() == journal
    assert run_main(*words, *budget, "--output-dir", tmp_path / "other") == 0
    assert settings_in(tmp_path / "other")["method"] == "context"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--budget", "fast"], "its `budget` was 'best', and is 'fast' now"),
        (["--dtype", "bfloat16"], "its `dtype` was 'float32', and is 'bfloat16' now"),
        (["--model", "copy"], "its `model` was '.*', and is '.*copy' now"),
    ],
)
def test_the_choice_of_another_run_is_refused_and_kept(
    words, curve, tmp_path, capsys, monkeypatch, model_folder, changed, message
):
    shutil.copytree(model_folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tttnn.methods.budget.measure_speed", lambda *parts: Speed(0.01, 0.02))
    assert run_main(*words, "--budget", "best", "--preset", curve) == 0
    choice = (tmp_path / "run" / "budget.json").read_bytes()
    assert run_main(*words, "--budget", "best", "--preset", curve, *changed) == 1
    assert re.search("budget.json' is the choice of another run: " + message, capsys.readouterr().err)
    assert (tmp_path / "run" / "budget.json").read_bytes() == choice


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"asked": {}, "method": "ttt"}'])
def test_a_damaged_choice_is_told(words, curve, tmp_path, capsys, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "budget.json").write_text(content)
    assert run_main(*words, "--budget", "best", "--preset", curve) == 1
    assert "budget.json' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1])
def test_another_process_takes_the_choice_of_the_first_or_its_refusal(words, curve, capsys, monkeypatch, status):
    """What the first process sends stands in for it; this one would have chosen, or refused, otherwise."""
    own = {0: Speed(10.0, 10.0), 1: Speed(0.01, 0.02)}[status]
    monkeypatch.setattr("tttnn.methods.budget.measure_speed", lambda *parts: own)

    def from_first(outcomes):
        if isinstance(outcomes[0], list):  # in which order journals are taken
            return outcomes
        outcome = TTT
        if status:
            outcome = InputError("`budget` is 5 seconds per document, and the cheapest choice takes 1000 here.")
        assert isinstance(outcomes[0], InputError) != isinstance(outcome, InputError)
        return [outcome]

    monkeypatch.setattr("tttnn.evaluation.run.broadcast_object_list", from_first)
    assert run_main(*words, "--budget", 5, "--preset", curve) == status
    assert ("takes 1000 here" in capsys.readouterr().err) == bool(status)


def test_a_fast_run_with_the_default_curve_takes_no_step(words, tmp_path):
    assert run_main(*words, "--budget", "fast", "--max-length", 16, "--num-neighbors", 2) == 0
    settings = settings_in(tmp_path / "run")
    assert (settings["method"], settings["num_neighbors"]) == ("context", 2)


def test_a_run_of_prefix_needs_no_index(words, tmp_path):
    place = words.index("--index")
    without = [*words[:place], *words[place + 2 :]]
    assert run_main(*without, "--budget", "fast", "--method", "prefix") == 0
    assert settings_in(tmp_path / "run")["method"] == "prefix"


def test_too_few_seconds_are_told_in_one_line(words, curve, capsys):
    assert run_main(*words, "--budget", "1e-12", "--preset", curve) == 1
    assert "`budget` is 1e-12 seconds per document, and the cheapest choice" in capsys.readouterr().err
