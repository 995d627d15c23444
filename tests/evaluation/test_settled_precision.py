"""The precision of a run: chosen once, named in its journal, kept when it is resumed."""

import json
import logging

import pytest
from conftest import TEXTS

from tttnn import Document
from tttnn.adaptation import PrecisionChoice
from tttnn.evaluation import EvaluateArguments, evaluate_documents, parse_evaluation
from tttnn.evaluation import precision as settled
from tttnn.evaluation.precision import settle_precision
from tttnn.journal import read_journal


@pytest.fixture(scope="module")
def folder(tiny_models, tokenizer, tmp_path_factory):
    """The folder of a tiny model."""
    path = tmp_path_factory.mktemp("parts") / "model"
    tiny_models["gpt2"].save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def evaluation(folder, tmp_path):
    def parse(*options, method="prefix"):
        words = ["--model", folder, "--dataset", "data", "--output-dir", tmp_path / "run", "--use-cpu", "True"]
        words += ["--method", method, "--disable-tqdm", "True", *options]
        return parse_evaluation(EvaluateArguments, [str(word) for word in words])

    return parse


@pytest.fixture
def answers(monkeypatch):
    """What the probe answers, and the texts and the kind of step that it was asked for."""
    asked, answer = [], ["bf16"]

    def choose(model, processing_class, args, text, *, trains):
        asked.append((text, trains))
        return PrecisionChoice(answer[0], f"Precision {answer[0]}: made up.")

    monkeypatch.setattr(settled, "choose_precision", choose)
    return asked, answer


DOCUMENTS = [Document("a", TEXTS[0]), Document("b", TEXTS[2])]


def journal_settings(tmp_path):
    return read_journal(tmp_path / "run" / "journal-eval.jsonl")[0]


# --- options ---


@pytest.mark.parametrize(
    ("options", "expected", "bf16"),
    [
        ([], "auto", False),
        (["--precision", "float32"], "float32", False),
        (["--precision", "bf16"], "bf16", True),
        (["--bf16"], None, True),
        (["--bf16", "false"], None, False),
        (["--bf16=True"], None, True),
        (["--budget", "fast"], "auto", False),
    ],
)
def test_a_command_line_leaves_the_precision_open_unless_it_names_one(evaluation, options, expected, bf16):
    args = evaluation(*options).args
    assert (args.precision, args.bf16) == (expected, bf16)


def test_a_published_preset_stays_in_float32(evaluation):
    args = evaluation("--preset", "tttlm", method="none").args
    assert (args.precision, args.bf16, args.mixed_precision) == (None, False, "no")


def test_two_precisions_are_refused(evaluation):
    with pytest.raises(ValueError, match="`precision` is 'float32', and `bf16` is True. Pass one of them."):
        evaluation("--precision", "float32", "--bf16", "True")


# --- one choice for a run ---


def test_the_choice_is_of_the_first_document_that_has_a_text(evaluation, model, tokenizer, answers):
    args = settle_precision(evaluation(), model, tokenizer, [Document("empty", ""), *DOCUMENTS]).args
    assert (args.precision, args.bf16, args.mixed_precision) == ("bf16", True, "bf16")
    assert answers[0] == [(TEXTS[0], False)]


def test_a_method_that_trains_is_timed_so(evaluation, model, tokenizer, answers):
    settle_precision(evaluation(method="query"), model, tokenizer, DOCUMENTS)
    assert answers[0] == [(TEXTS[0], True)]


@pytest.mark.parametrize(("name", "flag"), [("bf16", True), ("float32", False)])
def test_the_journal_and_the_results_name_the_precision(evaluation, answers, tmp_path, caplog, name, flag):
    answers[1][0] = name
    with caplog.at_level(logging.INFO, "tttnn"):
        evaluate_documents(evaluation(), DOCUMENTS, [])
    assert journal_settings(tmp_path)["bf16"] is flag
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["arguments"]["precision"] == name


def test_bf16_is_told_with_its_reason(evaluation, model, tokenizer, answers, monkeypatch):
    said = []
    monkeypatch.setattr(settled.logger, "warning", said.append)
    settle_precision(evaluation(), model, tokenizer, DOCUMENTS)
    assert said == ["Precision bf16: made up."]


@pytest.mark.parametrize("first", ["bf16", "float32"])
def test_a_resumed_run_keeps_its_precision_and_measures_nothing(evaluation, answers, tmp_path, first):
    """As on another machine, whose probe would answer otherwise."""
    answers[1][0] = first
    evaluate_documents(evaluation(), DOCUMENTS[:1], [])
    answers[0].clear()
    answers[1][0] = "float32" if first == "bf16" else "bf16"
    (outcome,) = evaluate_documents(evaluation(), DOCUMENTS, [])
    assert answers[0] == []
    assert journal_settings(tmp_path)["bf16"] is (first == "bf16")
    assert len(outcome.records) == 2


def test_a_forced_precision_does_not_resume_a_run_of_another(evaluation, answers):
    evaluate_documents(evaluation(), DOCUMENTS[:1], [])
    with pytest.raises(ValueError, match="`bf16` was True and is now False"):
        evaluate_documents(evaluation("--precision", "float32"), DOCUMENTS, [])


def test_a_journal_without_a_document_binds_nothing(evaluation, model, tokenizer, answers, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal-eval.jsonl").write_text("{}\n")
    assert settle_precision(evaluation(), model, tokenizer, DOCUMENTS).args.precision == "bf16"


def test_all_processes_take_the_choice_of_the_first(evaluation, model, tokenizer, answers, monkeypatch):
    """What the first process says arrives in the place of what this one found."""
    arriving = iter([None, PrecisionChoice("float32", "of the first")])
    monkeypatch.setattr(settled, "broadcast_object_list", lambda _: [next(arriving)])
    assert settle_precision(evaluation(), model, tokenizer, DOCUMENTS).args.precision == "float32"


def test_what_a_launcher_asks_for_is_not_measured(evaluation, model, tokenizer, answers, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    answers[1][0] = "float32"
    assert settle_precision(evaluation(), model, tokenizer, DOCUMENTS).args.bf16 is True
    assert answers[0] == []


def test_a_budget_is_measured_and_run_in_the_precision_that_was_chosen(evaluation, answers, tmp_path, monkeypatch):
    from tttnn.evaluation import run
    from tttnn.methods import BudgetChoice

    probed = []

    def choose(value, model, processing_class, args, curve, methods):
        probed.append(args.bf16)
        return BudgetChoice("prefix", {}, {}, "made up")

    monkeypatch.setattr(run, "choose_budget", choose)
    evaluate_documents(evaluation("--budget", "fast"), DOCUMENTS, [])
    assert probed == [True]
    assert journal_settings(tmp_path)["bf16"] is True
