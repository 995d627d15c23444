"""Two processes, launched by torchrun on gloo, against one."""

import json
import shutil

import pytest
import torch
from distributed_program import DOCUMENTS, SCENARIOS, UNREACHABLE, cut_journal, evaluate, make_trainer
from transformers import AutoTokenizer

from tttnn.adaptation.requirements import check_processes


TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def launched(two_processes):
    """A folder with what two processes wrote."""
    return two_processes / "distributed"


@pytest.fixture(scope="module")
def saved_tokenizer(two_processes):
    """The tokenizer as every process loads it, since a journal is resumed only with the tokenizer of the same name."""
    return AutoTokenizer.from_pretrained(two_processes / "tokenizer")


def dumped(launched, name, rank):
    return json.loads((launched / f"{name}-{rank}.json").read_text())


def assert_same(result, expected):
    """Equal to 1e-6 in every number but the seconds, and equal in all else."""
    assert [record["index"] for record in result["records"]] == list(range(len(expected["records"])))
    for record, other in zip(result["records"], expected["records"], strict=True):
        for name in record:
            if name in ("nll", "train_loss"):
                assert record[name] == pytest.approx(other[name], rel=TOLERANCE), name
            elif name != "seconds":
                assert record[name] == other[name], name
    # seconds and speed differ by nature
    counted = [name for name in expected["metrics"] if "second" not in name and "runtime" not in name]
    assert {name: result["metrics"][name] for name in counted} == pytest.approx(
        {name: expected["metrics"][name] for name in counted}, rel=TOLERANCE
    )
    assert result["metrics"].keys() == expected["metrics"].keys()


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_agree_with_one(launched, saved_tokenizer, tmp_path, name):
    overrides = dict(SCENARIOS[name])
    documents = overrides.pop("documents", DOCUMENTS)
    expected = evaluate(make_trainer(tmp_path, saved_tokenizer, **overrides), documents)
    for rank in (0, 1):
        assert_same(dumped(launched, name, rank), expected)
    for record in expected["records"]:
        assert record["status"] == "untrained" or abs(record["nll"][-1] / record["nll"][0] - 1) > 100 * TOLERANCE


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_processes_hold_every_record(launched, name):
    first, second = (dumped(launched, name, rank) for rank in (0, 1))
    assert first["records"] == second["records"]
    # the seconds of the phases are pooled, so that they are equal too; the time of the whole is each process's own
    own = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    pooled = first["metrics"].keys() - own
    assert len(pooled) == len(first["metrics"]) - len(own)
    assert all(first["metrics"][name] == second["metrics"][name] for name in pooled)


def retrieved(launched, name):
    return [dumped(launched, name, rank)["retrieved"] for rank in (0, 1)]


def test_the_processes_share_the_documents(launched):
    assert sum(retrieved(launched, "all")) == 7
    assert sorted(retrieved(launched, "fewer than processes")) == [0, 1]


def test_while_one_process_is_at_a_long_document_the_other_takes_all_others(launched):
    """The first document ends only when the six others have: shared out beforehand, some would have waited for it."""
    assert sorted(retrieved(launched, "uneven")) == [1, 6]


def test_two_processes_resume_a_run_of_which_one_was_killed(launched, saved_tokenizer, tmp_path):
    expected = evaluate(make_trainer(tmp_path, saved_tokenizer))
    finished = dumped(launched, "killed", 0)["finished"]
    assert finished in (1, 2)  # process 1 died on its second document; process 0 has finished no or one document
    assert sum(retrieved(launched, "killed")) == 7 - finished
    for rank in (0, 1):
        assert_same(dumped(launched, "killed", rank), expected)


def test_a_document_that_fails_on_the_second_process_is_named_by_both(launched):
    for rank in (0, 1):
        result = dumped(launched, "all", rank)
        assert result["metrics"]["eval_num_untrained"] == 1
        assert [record["index"] for record in result["records"] if record["status"] == "untrained"] == [3]
        assert result["records"][3]["error"] == "ConnectionError: the index is unreachable"


def test_documents_differ_in_their_seed(launched):
    """The random orders are not one order: 3 neighbors have 6, and 6 documents of one order have a chance of 6^-5."""
    orders = set()
    for record in dumped(launched, "all", 0)["records"]:
        if record["status"] == "trained":
            orders.add(tuple(sorted(range(3), key=record["distances"].__getitem__)))
    assert len(orders) > 1


def test_each_process_keeps_a_journal_of_its_documents(launched):
    written = []
    for name, number in zip(
        ("journal-eval.jsonl", "journal-eval.rank1.jsonl"), retrieved(launched, "all"), strict=True
    ):
        header, *lines = (launched / "all" / name).read_text().splitlines()
        assert "settings" in json.loads(header)
        indices = [json.loads(line)["index"] for line in lines]
        assert len(indices) == number
        assert indices == sorted(indices)
        written += indices
    assert sorted(written) == list(range(7))


def test_two_processes_go_on_with_the_journal_of_one(launched):
    """The journal held documents 0, 1 and 2; there are seven."""
    assert sum(retrieved(launched, "resumed")) == 4


def test_one_process_goes_on_with_the_journals_of_two(launched, saved_tokenizer, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(launched / "all", folder)
    numbers = retrieved(launched, "all")
    cut_journal(folder / ("journal-eval.jsonl" if numbers[0] > numbers[1] else "journal-eval.rank1.jsonl"), 1)
    result = evaluate(make_trainer(folder, saved_tokenizer, **SCENARIOS["all"]))
    assert result["retrieved"] == max(numbers) - 1
    assert_same(result, dumped(launched, "all", 0))


def test_finished_journals_of_two_leave_nothing_to_do(launched, saved_tokenizer, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(launched / "all", folder)
    result = evaluate(make_trainer(folder, saved_tokenizer, **SCENARIOS["all"]))
    assert result["retrieved"] == 0
    assert_same(result, dumped(launched, "all", 0))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_carried_optimizer_is_refused_on_two_processes(launched, rank):
    message = dumped(launched, "carried", rank)
    assert "`reset_optimizer` is False and 2 processes run" in message


def test_processes_that_did_not_find_each_other_are_refused(saved_tokenizer, tmp_path, monkeypatch):
    args = make_trainer(tmp_path, saved_tokenizer).args
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE=2, but 1 process takes part"):
        check_processes(args, sharded=False)


def test_a_journal_of_other_settings_is_refused_with_its_reason(saved_tokenizer, tmp_path):
    evaluate(make_trainer(tmp_path, saved_tokenizer), DOCUMENTS[:1])
    with pytest.raises(ValueError, match="`learning_rate` was 0.001 and is now 0.5"):
        evaluate(make_trainer(tmp_path, saved_tokenizer, learning_rate=0.5), DOCUMENTS[:1])


def test_a_journal_is_gone_on_with_on_another_number_of_threads(saved_tokenizer, tmp_path):
    """A launcher sets one thread per process, and a plain start takes all: the weights are the same."""

    def run(num_threads):
        torch.set_num_threads(num_threads)
        # sums of large tensors are split over threads
        return evaluate(make_trainer(tmp_path, saved_tokenizer, vocab_size=100_000), [UNREACHABLE])["retrieved"]

    try:
        assert [run(1), run(2), run(1)] == [1, 0, 0]
    finally:
        torch.set_num_threads(1)
