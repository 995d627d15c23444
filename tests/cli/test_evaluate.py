"""`tttnn evaluate`: what it prints and keeps, what it refuses, and how it resumes."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import help_of, run_main, write_rows
from conftest import TEXTS
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from tttnn import NeighborRetriever
from tttnn.evaluation import EvaluateArguments, parse_evaluation
from tttnn.evaluation.run import load_trainer_arguments
from tttnn.retrieval import NeighborCache


def table_in(output, without="seconds"):
    """The cells of the table in an output, but for a column that no two runs share."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    place = rows[0].index(without)
    return [row[:place] + row[place + 1 :] for row in rows]


def journal_in(folder):
    header, *lines = (folder / "journal-eval.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(header)["settings"], [json.loads(line) for line in lines]


def pooled(records, position):
    return sum(r["nll"][position] for r in records) / sum(r["num_bytes"] for r in records) / math.log(2)


def test_an_evaluation_prints_and_keeps_what_the_trainer_finds(evaluation, documents, make_trainer, tmp_path, capsys):
    assert run_main(*evaluation, "--score-every-neighbor") == 0
    output = capsys.readouterr()
    _, records = journal_in(tmp_path / "run")
    trainer = make_trainer(output_dir=str(tmp_path / "other run"), score_every_neighbor=True)
    trainer.evaluate(documents)
    for record, other in zip(records, trainer.records, strict=True):
        assert record["neighbor_ids"] == other.neighbor_ids
        assert record["nll"] == pytest.approx(other.nll, rel=1e-6)
        assert len(record["nll"]) == 5
    ids = [f"test.jsonl:{line}" for line in (1, 2, 3)]
    assert table_in(output.out)[2:] == [
        [
            name,
            str(record["num_bytes"]),
            f"{pooled([record], 0):.4f}",
            f"{pooled([record], -1):.4f}",
            f"{record['nll'][-1] / record['nll'][0]:.3f}",
        ]
        for name, record in zip(ids, records, strict=True)
    ]
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert results["eval_bits_per_byte_before"] == pytest.approx(pooled(records, 0))
    assert results["eval_bits_per_byte"] == pytest.approx(pooled(records, -1))
    assert results["eval_bits_per_byte_ratio"] == pytest.approx(pooled(records, -1) / pooled(records, 0))
    assert results["eval_num_documents"] == 3
    assert f"{pooled(records, 0):.4f} -> {pooled(records, -1):.4f} bits per byte" in output.out
    # the bars are on standard error alone
    assert "Documents: 100%" in output.err
    assert "3/3" in output.err
    assert "Documents:" not in output.out
    picture = tmp_path / "run" / "curve.png"
    assert output.out.splitlines()[-2] == str(picture)
    with Image.open(picture) as image:
        image.verify()


def test_an_evaluation_ends_with_its_folder_and_the_command_of_a_report(evaluation, tmp_path, capsys):
    folder = tmp_path / "my run"
    assert run_main(*evaluation, "--limit", 1, "--output-dir", folder) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"The results are in {folder}. For a report: tttnn report '{folder}'"


def test_without_every_score_there_is_no_picture(evaluation, tmp_path, capsys):
    assert run_main(*evaluation, "--limit", 2, "--disable-tqdm", "True") == 0
    output = capsys.readouterr()
    assert len(table_in(output.out)) == 2 + 2
    assert not (tmp_path / "run" / "curve.png").exists()
    assert all(len(record["nll"]) == 2 for record in journal_in(tmp_path / "run")[1])
    assert "Documents:" not in output.err


def test_over_a_hundred_documents_are_told_in_one_line(evaluation, tmp_path, capsys):
    write_rows(tmp_path / "test.jsonl", ["a b"] * 101)
    assert run_main(*evaluation, "--num-neighbors", 1, "--max-distance", 0, "--disable-tqdm", "True") == 0
    output = capsys.readouterr().out
    assert "Pooled over 101 documents" in output
    assert "|" not in output


def test_a_folder_and_named_ids_are_evaluated(evaluation, corpus, tmp_path):
    for number in range(2, 10):
        (corpus / f"{number}.txt").unlink()
    assert run_main(*evaluation, "--dataset", corpus, "--exclude", "id") == 0
    _, records = journal_in(tmp_path / "run")
    assert [record["id"] for record in records] == ["0.txt", "1.txt"]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"body": TEXTS[0], "key": "row 0"}) + "\n")
    columns = ["--text-column", "body", "--id-column", "key", "--query", "document", "--exclude", "id"]
    assert run_main(*evaluation, "--dataset", path, "--output-dir", tmp_path / "rows", *columns) == 0
    _, (record,) = journal_in(tmp_path / "rows")
    assert record["id"] == "row 0"
    assert record["num_bytes"] == len(TEXTS[0].encode())
    assert 0 not in record["neighbor_ids"]  # it is not its own neighbor


def test_a_hub_data_set_is_evaluated(evaluation, documents, tmp_path, monkeypatch):
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return iter([{"text": text, "id": f"hub-{row}"} for row, text in enumerate(documents)])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    options = ("--limit", 2, "--dataset-config", "de", "--dataset-revision", "v1")
    assert run_main(*evaluation, "--dataset", "user/test-set", *options) == 0
    expected = {"path": "user/test-set", "name": "de", "split": "test", "revision": "v1", "streaming": True}
    assert asked.items() >= expected.items()
    assert [record["id"] for record in journal_in(tmp_path / "run")[1]] == ["hub-0", "hub-1"]


def test_the_configuration_of_a_hub_data_set_is_not_that_of_validation_files(
    evaluation, documents, tmp_path, monkeypatch
):
    def load_dataset(path, **options):
        return iter([{"text": text, "id": f"hub-{row}"} for row, text in enumerate(documents[:1])])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (tmp_path / "validation.txt").write_text(TEXTS[-1])
    options = ("--dataset-config", "de", "--validation", tmp_path / "validation.txt", "--learning-rates", 1e-3)
    place = evaluation.index("--learning-rate")
    words = [*evaluation[:place], *evaluation[place + 2 :]]
    assert run_main(*words, "--dataset", "user/test-set", *options) == 0


def test_the_preset_is_the_authors_setting_and_options_override_it():
    """Values: section 1 of the project's notes on the official code; 16.0 is 4.0 squared."""
    parts = ["--model", "m", "--index", "i", "--dataset", "d", "--use-cpu"]
    evaluation = parse_evaluation(EvaluateArguments, [*parts, "--preset", "tttlm"])
    inputs, args = evaluation.inputs, evaluation.args
    assert (inputs.model, evaluation.index.index, inputs.dataset, inputs.preset) == ("m", "i", "d", "tttlm")
    expected = {
        "num_neighbors": 50,
        "order": "nearest",
        "query": "document",
        "max_length": 1024,
        "max_distance": 16.0,
        "chunks_per_neighbor": None,
        "score_every_neighbor": True,
        "reset_optimizer": False,
        "disable_dropout": False,
        "drop_near_copies": False,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 1,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    overrides = ["--learning-rate", "5e-6", "--max-length", "2048", "--chunks-per-neighbor", "2", "--reset-optimizer"]
    # before and after `--preset`
    words = [*parts, *overrides, "--preset=tttlm", "--disable-dropout", "True"]
    args = parse_evaluation(EvaluateArguments, words).args
    expected |= {
        "learning_rate": 5e-6,
        "max_length": 2048,
        "chunks_per_neighbor": 2,
        "reset_optimizer": True,
        "disable_dropout": True,
    }
    assert {name: getattr(args, name) for name in expected} == expected


def test_without_a_preset_the_defaults_are_ours():
    parts = ["--model", "m", "--index", "i", "--dataset", "d", "--use-cpu"]
    args = parse_evaluation(EvaluateArguments, parts).args
    found = (args.num_neighbors, args.query, args.reset_optimizer, args.chunks_per_neighbor, args.disable_dropout)
    assert found == (20, "prefix", True, 1, True)
    args = parse_evaluation(EvaluateArguments, [*parts, "--chunks-per-neighbor", "all", "--adam-beta1", "0.5"]).args
    assert (args.chunks_per_neighbor, args.adam_beta1) == (None, 0.5)


def test_a_flag_is_switched_off_as_the_help_says(capsys, monkeypatch):
    assert "--NAME false" in help_of("evaluate", capsys, monkeypatch)
    parts = ["--model", "m", "--index", "i", "--dataset", "d", "--use-cpu"]
    args = parse_evaluation(EvaluateArguments, [*parts, "--disable-dropout", "false"]).args
    assert not args.disable_dropout
    args = parse_evaluation(EvaluateArguments, [*parts, "--preset", "tttlm", "--score-every-neighbor", "false"]).args
    assert not args.score_every_neighbor


def test_the_preset_is_evaluated(evaluation, documents, tmp_path):
    """Every score is kept, all chunks of 8 tokens are trained on, and the optimizer is carried."""
    assert run_main(*evaluation, "--preset", "tttlm", "--max-length", 8, "--num-neighbors", 3) == 0
    settings, records = journal_in(tmp_path / "run")
    assert (settings["query"], settings["reset_optimizer"], settings["chunks_per_neighbor"]) == (
        "document",
        False,
        None,
    )
    assert [record["num_bytes"] for record in records] == [len(text.encode()) for text in documents]
    assert {len(record["nll"]) for record in records} <= {1, 2, 3, 4}
    assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == ["journal-eval-optimizer-2.safetensors"]


def test_revisions_precision_and_embedder_reach_what_is_loaded(monkeypatch):
    asked = {}
    for kind in (AutoModelForCausalLM, AutoTokenizer, NeighborRetriever):
        monkeypatch.setattr(
            kind, "from_pretrained", lambda name, kind=kind, **options: asked.update({kind: (name, options)})
        )
    words = "--model user/model --dataset d --index user/index --dtype bfloat16 --model-revision m1 --use-cpu"
    words += (
        " --index-revision i1 --index-shards 0 3 --index-texts remote --embedder e --trust-index --passage-length 9"
    )
    load_trainer_arguments(parse_evaluation(EvaluateArguments, words.split()))
    assert isinstance(asked[NeighborRetriever][1].pop("cache"), NeighborCache)
    assert asked == {
        AutoModelForCausalLM: ("user/model", {"revision": "m1", "dtype": "bfloat16"}),
        AutoTokenizer: ("user/model", {"revision": "m1"}),
        NeighborRetriever: (
            "user/index",
            {
                "revision": "i1",
                "shards": [0, 3],
                "texts": "remote",
                "embedder": "e",
                "trust_index": True,
                "passage_length": 9,
                "cluster": None,
                "replicas": 1,
                "on_missing": "wait",
            },
        ),
    }


def test_mixed_precision_needs_no_word_about_the_cpu(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert run_main(*evaluation[:-1], "--bf16", "True", "--limit", 1) == 0
    assert journal_in(tmp_path / "run")[0]["bf16"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/missing/model"], "/missing/model"),
        (["--dataset", "/missing/test.jsonl"], "There is no file or folder at '/missing/test.jsonl'"),
        (["--preset", "tttln"], "There is no preset 'tttln'. Pass one of 'tttlm', or a file of `tttnn tune`"),
        (["--num-neighbors", "0"], "`num_neighbors` is 0"),
        (["--num-neighbors", "11"], "the index holds 10 documents"),
        (["--top-k", "3"], "`top_k` is 3, fewer than the 4 of `num_neighbors`"),
        (["--max-steps", "5"], "`max_steps` is 5, which has no meaning here"),
        (["--limit", "0"], "The limit is 0 documents"),
        (["--text-column", "body"], "has no column `body`"),
        (["--id-column", "key"], "has no column `key`"),
        (["--no-such-option", "1"], "--no-such-option"),
        (["--lr-scheduler-type", "sideways"], "sideways"),
        (["--dtype", "float33"], "float33"),
        (["--limit", "-1"], "limit"),
        (["--chunks-per-neighbor", "some"], "chunks_per_neighbor"),
        (["--learning-rate", "1e30"], "training diverged"),
    ],
)
def test_a_wrong_evaluation_is_told(options, message, evaluation, capsys):
    assert run_main(*evaluation, *options) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("tttnn evaluate: error: ")
    assert message in output.err.splitlines()[-1]


def test_a_logger_that_is_not_installed_is_told_before_the_work(evaluation, monkeypatch, capsys):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    assert run_main(*evaluation, "--dataset", "/missing", "--report-to", "wandb") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tttnn evaluate: error: `--report-to` names a logger that cannot be used here: ")
    assert line.endswith("Run `pip install wandb`.")


def test_an_unknown_logger_is_told_with_the_known_ones(evaluation, capsys):
    assert run_main(*evaluation, "--report-to", "paper") == 1
    assert "paper is not supported, only" in capsys.readouterr().err


# --- again ---


def test_a_second_run_tells_the_same_and_does_nothing(evaluation, tmp_path, capsys, monkeypatch):
    assert run_main(*evaluation) == 0
    first = capsys.readouterr().out
    journal = (tmp_path / "run" / "journal-eval.jsonl").read_bytes()
    monkeypatch.setattr(NeighborRetriever, "retrieve", lambda *arguments: pytest.fail("a document was done again"))
    assert run_main(*evaluation) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "run" / "journal-eval.jsonl").read_bytes() == journal


def test_more_documents_go_on_where_fewer_ended(evaluation, tmp_path, capsys):
    assert run_main(*evaluation, "--limit", 1) == 0
    journal = (tmp_path / "run" / "journal-eval.jsonl").read_bytes()
    assert run_main(*evaluation) == 0
    assert (tmp_path / "run" / "journal-eval.jsonl").read_bytes().startswith(journal)
    capsys.readouterr()
    assert run_main(*evaluation, "--limit", 2) == 0
    assert "Pooled over 2 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning-rate", "0.01"], "`learning_rate` was 0.001 and is now 0.01"),
        (["--seed", "1", "--num-neighbors", "5"], "different: num_neighbors, seed"),
        (["--preset", "tttlm"], "written with other settings"),
        (["--budget", "fast"], "written with other settings"),
    ],
)
def test_a_second_run_with_other_settings_is_refused(options, message, evaluation, tmp_path, capsys):
    assert run_main(*evaluation, "--limit", 1) == 0
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert kept.keys() >= {"journal-eval.jsonl", "evaluation.json"}
    capsys.readouterr()
    assert run_main(*evaluation, *options) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert str(tmp_path / "run" / "journal-eval.jsonl") in output.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept, "a report would show them"


def test_a_second_run_on_other_documents_is_refused(evaluation, documents, tmp_path, capsys):
    assert run_main(*evaluation) == 0
    write_rows(tmp_path / "test.jsonl", documents[::-1])
    capsys.readouterr()
    assert run_main(*evaluation) == 1
    assert "the data set has changed" in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_document_does_not_hold_up_the_next(evaluation, capsys):
    assert run_main(*evaluation, "--num-neighbors", 11) == 1
    assert run_main(*evaluation, "--num-neighbors", 10) == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_killed(evaluation, documents, tmp_path, capsys):
    write_rows(tmp_path / "test.jsonl", [f"{number} {documents[number % 3]}" for number in range(12)])
    slow = [*evaluation, "--num-neighbors", "10", "--score-every-neighbor", "--disable-tqdm", "True"]
    journal = tmp_path / "run" / "journal-eval.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "tttnn", *map(str, slow)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf_home")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        # a header and a record
        while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = journal.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    done = kept.count(b"\n") - 1
    assert 1 <= done < 12
    assert run_main(*slow) == 0
    resumed = capsys.readouterr().out
    # what was done is not done again
    assert journal.read_bytes().startswith(kept)
    assert [record["index"] for record in journal_in(tmp_path / "run")[1]] == list(range(12))
    assert run_main(*slow, "--output-dir", tmp_path / "in one go") == 0
    assert table_in(resumed) == table_in(capsys.readouterr().out)
    one_go = journal_in(tmp_path / "in one go")[1]
    assert [record["nll"] for record in journal_in(tmp_path / "run")[1]] == [record["nll"] for record in one_go]
