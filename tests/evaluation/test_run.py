"""The options of each method, choices on validation documents, two processes, a killed sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TEXTS
from made_experts import made_experts
from methods_program import SCENARIOS, choose_rate, evaluate
from reference import Settings, adapted_nll
from transformers import AutoTokenizer

from tttnn import Document
from tttnn.embedding import Embedder
from tttnn.evaluation import EvaluateArguments, evaluate_documents, parse_evaluation
from tttnn.evaluation.choose import best_candidate
from tttnn.intervals import Bootstrap
from tttnn.journal import Journal, read_journal
from tttnn.methods import METHODS, KnnArguments
from tttnn.records import DocumentRecord
from tttnn.report import write_report


EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
import compare_methods  # noqa: E402  (the examples are not installed)


RETRIEVING = ["ttt", "context", "context+ttt", "experts", "experts+ttt", "knn-lm"]


@pytest.fixture(scope="module")
def parts(tiny_models, tokenizer, embedder, retriever, tmp_path_factory):
    """Folders of the tiny model and of an index."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_models["gpt2"].save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    embedder.save(str(folder / "embedder"))
    retriever.save_pretrained(folder / "index")
    return folder


@pytest.fixture(scope="module", autouse=True)
def experts(tiny_models, tmp_path_factory):
    """Experts, which are looked at when options are parsed."""
    EXPERTS.append(str(made_experts(tmp_path_factory.mktemp("made") / "experts", tiny_models["gpt2"], "digest", 32)))


EXPERTS = []


def words_of(method, *options, index="index"):
    retrieving = ["--index", index] if method in RETRIEVING else []
    own = ["--experts", *EXPERTS] if "experts" in METHODS[method].own_options else []
    return ["--model", "model", "--dataset", "data", "--method", method, *retrieving, *own, *map(str, options)]


def parse(method, *options, **keywords):
    return parse_evaluation(EvaluateArguments, words_of(method, *options, **keywords), prog="tttnn evaluate")


# options

OTHERS = [
    ("none", "--index", "x"),
    ("none", "--learning_rate", 1e-3),
    ("none", "--num_neighbors", 3),
    ("none", "--validation", "x"),
    ("none", "--trainable", "lora"),
    ("dynamic", "--index", "x"),
    ("dynamic", "--num_neighbors", 3),
    ("dynamic", "--num_train_epochs", 2),
    ("dynamic", "--score_every_neighbor", "True"),
    ("dynamic", "--knn_lambda", 0.1),
    ("dynamic", "--index_fraction", 0.1),
    ("context", "--learning_rate", 1e-3),
    ("context", "--learning_rates", 1e-3),
    ("context", "--order", "random"),
    ("context", "--gradient_accumulation_steps", 2),
    (
        "context",
        "--no_reset_optimizer",
    ),
    ("context", "--trainable", "lora"),
    ("context", "--validation", "x"),
    ("knn-lm", "--trainable", "lora"),
    ("knn-lm", "--context_length", 9),
    ("knn-lm", "--learning-rate", 1e-3),
    ("ttt", "--context_length", 9),
    ("ttt", "--knn_k", 9),
    ("context+ttt", "--knn_k", 9),
]


@pytest.mark.parametrize(
    ("method", "option", "values"), [(method, option, values) for method, option, *values in OTHERS]
)
def test_an_option_of_another_method_is_refused_by_its_name(method, option, values):
    with pytest.raises(
        ValueError, match=f"'{option.replace('_', '-')}' is no option of the method {method}".replace("+", r"\+")
    ):
        parse(method, option, *values)


@pytest.mark.parametrize("method", RETRIEVING)
def test_a_method_with_neighbors_needs_an_index(method, capsys):
    words = [word for word in words_of(method) if word not in ("--index", "index")]
    with pytest.raises(SystemExit):
        parse_evaluation(EvaluateArguments, words)
    assert "the following arguments are required: --index" in capsys.readouterr().err


def test_an_unknown_method_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        parse_evaluation(EvaluateArguments, ["--model", "m", "--dataset", "d", "--method", "magic"])
    assert "invalid choice: 'magic' (choose from" in capsys.readouterr().err


def test_the_method_is_also_read_after_an_equals_sign():
    words = ["--model", "m", "--dataset", "d", "--method=none"]
    assert parse_evaluation(EvaluateArguments, words).method.name == "none"


@pytest.mark.parametrize("method", METHODS)
def test_the_help_of_a_method_shows_its_own_options_only(method, capsys):
    users_of = {
        "--order": {"ttt", "context+ttt", "experts+ttt"},
        "--batch-documents": {"ttt", "context+ttt", "experts+ttt"},
        "--num-train-epochs": {"ttt", "context+ttt", "experts+ttt"},
        "--learning-rate": {"ttt", "query", "context+ttt", "experts+ttt", "dynamic"},
        "--trainable": {"ttt", "query", "context+ttt", "dynamic"},
        "--num-neighbors": set(RETRIEVING),
        "--index-fraction": set(RETRIEVING),
        "--context-length": {"context", "context+ttt"},
        "--experts": {"experts", "experts+ttt"},
        "--knn-lambda": {"knn-lm"},
        "--validation": {"ttt", "query", "context+ttt", "experts+ttt", "dynamic", "knn-lm"},
        "--max-length": set(METHODS),
        "--query": set(METHODS),
    }
    with pytest.raises(SystemExit) as end:
        parse(method, "--help")
    assert end.value.code == 0
    output = capsys.readouterr().out
    shown = {word.rstrip(",") for line in output.splitlines() if line.startswith("  --") for word in line.split()}
    assert {*users_of} & shown == {option for option, users in users_of.items() if method in users}


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_serves_every_method(method):
    evaluation = parse(method, "--preset", "tttlm")
    args = evaluation.args
    assert args.query == "document"
    assert args.max_length == 1024
    assert args.num_neighbors == (50 if method in RETRIEVING else 20)
    assert type(evaluation.method) is METHODS[method]


@pytest.mark.parametrize(("method", "resets"), [("none", True), ("context", True), ("ttt", False), ("dynamic", False)])
def test_a_preset_carries_no_optimizer_where_there_is_none(method, resets):
    """A carried one keeps a second process away, and a method without steps has no option to say otherwise."""
    assert parse(method, "--preset", "tttlm").args.reset_optimizer is resets


@pytest.mark.parametrize(("word", "value"), [("4", 4), ("auto", "auto")])
def test_documents_are_batched_by_a_number_or_auto(word, value):
    assert parse("ttt", "--trainable", "lora", "--batch-documents", word).args.batch_documents == value


def test_options_override_a_preset():
    args = parse(
        "ttt", "--preset", "tttlm", "--num_neighbors", 3, "--chunks_per_neighbor", 2, "--reset_optimizer", "True"
    ).args
    assert (args.num_neighbors, args.chunks_per_neighbor, args.reset_optimizer) == (3, 2, True)


@pytest.mark.parametrize(
    ("options", "candidates"),
    [
        ([], 20),
        (["--distinct", "text"], 40),
        (["--distinct", "document"], 200),
        (["--selector", "sift"], 200),
        (["--selector", "hull", "--top-k", 60], 60),
        (["--selector", "hull", "--num-neighbors", 300], 300),
        (["--selector", "sift", "--num-neighbors", 150, "--drop-near-copies"], 300),
    ],
)
def test_what_compares_candidates_gets_more_of_them(options, candidates):
    assert parse("ttt", *options).args.num_candidates == candidates


def test_lists_of_numbers_are_read():
    evaluation = parse("knn-lm", "--knn_lambda", 0.1, 0.2, "--knn_temperature", 3, "--index_fraction", 0.5, 1)
    assert evaluation.method.knn == KnnArguments([0.1, 0.2], [3.0])
    assert evaluation.index.index_fraction == [0.5, 1.0]


# choices


@pytest.fixture
def setting(parts, tmp_path):
    """Arguments of an evaluation of tiny parts, and the evaluation of documents under them."""

    def run(method, options, texts, validation=()):
        options = [
            "--output_dir",
            tmp_path / method,
            "--max_length",
            32,
            "--use_cpu",
            "--disable_tqdm",
            "True",
            *options,
        ]
        if method in RETRIEVING:
            options += ["--num_neighbors", 3, "--embedder", parts / "embedder"]
        words = words_of(method, *options, index=str(parts / "index"))
        words[1] = str(parts / "model")
        evaluation = parse_evaluation(EvaluateArguments, words)
        documents = [Document(f"test {place}", text, {}) for place, text in enumerate(texts)]
        others = [Document(f"validation {place}", text, {}) for place, text in enumerate(validation)]
        return evaluate_documents(evaluation, documents, others)

    return run


def settings_in(path):
    return json.loads(path.read_text().splitlines()[0])["settings"]


def test_the_learning_rate_is_that_of_the_best_validation_score(setting, model, tokenizer, retriever, tmp_path):
    rates, text = [1e-6, 3e-3, 0.3], TEXTS[2]
    neighbors = [neighbor.text for neighbor in retriever.retrieve([text], 3)[0]]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the plain loop is in train mode
    scores = [adapted_nll(model, tokenizer, [(text, neighbors)], Settings(32, rate))[0][-1] for rate in rates]
    best = rates[scores.index(min(scores))]
    options = ["--learning_rates", *rates, "--query", "document"]
    (outcome,) = setting("ttt", options, TEXTS[5:7], [text])
    assert settings_in(tmp_path / "ttt" / "journal-eval.jsonl")["learning_rate"] == best
    for rate, score in zip(rates, scores, strict=True):
        _, record = (tmp_path / "ttt" / f"journal-validation-{rate:g}.jsonl").read_text().splitlines()
        assert json.loads(record)["id"] == "validation 0"
        # at a rate of 0.3, Adam makes rounding of gradients near 0 as large as a step
        assert json.loads(record)["nll"][-1] == pytest.approx(score, rel=1e-5 if rate < 0.1 else 1e-3)
    assert [record.id for record in outcome.records] == ["test 0", "test 1"]


def test_the_weights_of_the_votes_are_chosen_on_validation_documents(setting, tmp_path):
    options = ["--knn_lambda", 0.0, 0.3, "--knn_temperature", 1, 100, "--query", "document"]
    (outcome,) = setting("knn-lm", options, [TEXTS[5]], [TEXTS[2]])
    _, line = (tmp_path / "knn-lm" / "journal-validation.jsonl").read_text().splitlines()
    nll = json.loads(line)["nll"][1:]
    pairs = [(0.0, 1.0), (0.3, 1.0), (0.0, 100.0), (0.3, 100.0)]
    settings = settings_in(tmp_path / "knn-lm" / "journal-eval.jsonl")
    assert (settings["knn_lambda"], settings["knn_temperature"]) == tuple([x] for x in pairs[nll.index(min(nll))])
    assert len(outcome.records[0].nll) == 2


def record(nll, status="scored"):
    return DocumentRecord(0, "", "", {}, 10, 2, status=status, nll=nll)


def test_the_candidate_with_the_lowest_sum_is_chosen():
    """The sums are 14, 12, 11 and 15."""
    records = [record([9.0, 10.0, 2.0, 8.0, 9.0]), record([9.0, 4.0, 10.0, 3.0, 6.0])]
    assert best_candidate(records, ["a", "b", "c", "d"]) == "c"


def test_an_untrained_document_has_no_say_in_the_choice():
    """Its one score stands for every candidate."""
    assert best_candidate([record([9.0], "untrained"), record([9.0, 5.0, 4.0])], ["a", "b"]) == "b"


def test_a_choice_without_any_adapted_document_is_refused():
    with pytest.raises(ValueError, match="None of the 2 validation documents could be adapted to"):
        best_candidate([record([9.0], "untrained")] * 2, ["a", "b"])


@pytest.mark.parametrize(
    ("method", "options", "validation", "message"),
    [
        ("ttt", ["--learning_rates", 1e-3, 1e-2], [TEXTS[1], TEXTS[5]], "'validation 1' is also a test document"),
        ("ttt", ["--learning_rates", 1e-3, 1e-2], [], "Pass `--validation`, or set `--learning-rate`"),
        ("ttt", [], [TEXTS[1]], "there is nothing to choose on them"),
        ("knn-lm", [], [], "or set one `--knn-lambda` and one `--knn-temperature`"),
    ],
)
def test_choices_on_the_wrong_documents_are_refused(setting, method, options, validation, message):
    with pytest.raises(ValueError, match=message):
        setting(method, options, [TEXTS[5]], validation)


@pytest.mark.parametrize("method", ["ttt", "context"])
def test_selectors_and_passages_are_told_apart_by_their_journals(setting, tmp_path, method):
    options = ["--selector", "sift", "--distinct", "document", "--passage-length"]
    (outcome,) = setting(method, [*options, 8], TEXTS[5:7])
    settings = settings_in(tmp_path / method / "journal-eval.jsonl")
    assert [settings[name] for name in ("selector", "distinct", "passage_length")] == ["sift", "document", 8]
    assert all(len(record.neighbor_ids) == 3 for record in outcome.records)
    with pytest.raises(ValueError, match="`passage_length` was 8 and is now 9"):
        setting(method, [*options, 9], TEXTS[5:7])


def test_fractions_of_the_index_share_what_is_embedded(setting, tmp_path, monkeypatch):
    texts = [TEXTS[2], TEXTS[5]]
    embedded = []
    encode = Embedder.encode_query

    def counted(self, queries, *args, **kwargs):
        embedded.extend(queries)
        return encode(self, queries, *args, **kwargs)

    monkeypatch.setattr(Embedder, "encode_query", counted)
    options = ["--index_fraction", 0.4, 1.0, "--query", "document"]
    outcomes = setting("ttt", options, texts)
    assert [outcome.name for outcome in outcomes] == ["eval-fraction-0.4", "eval-fraction-1"]
    assert [text for text in embedded if text in texts] == texts
    embedded.clear()
    setting("context", options, texts)
    assert not [text for text in embedded if text in texts]
    # of ten documents four are in the smaller part, and the larger one is the whole
    (smaller, larger) = ({row for record in outcome.records for row in record.neighbor_ids} for outcome in outcomes)
    assert len(smaller) <= 4
    assert larger - smaller


# processes


@pytest.fixture(scope="module")
def launched(two_processes):
    """A folder with what two processes wrote, and the tokenizer as they loaded it."""
    return two_processes / "methods", AutoTokenizer.from_pretrained(two_processes / "tokenizer")


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_agree_with_one(launched, tmp_path, name):
    folder, tokenizer = launched
    expected = evaluate(name, tokenizer, tmp_path)
    for rank in (0, 1):
        records = json.loads((folder / f"{name}-{rank}.json").read_text())
        assert [record["index"] for record in records] == [0, 1, 2]
        for record, other in zip(records, expected, strict=True):
            assert record.pop("nll") == pytest.approx(other["nll"], rel=1e-6)
            assert record.pop("train_loss") == pytest.approx(other["train_loss"], rel=1e-6)
            assert record == {key: value for key, value in other.items() if key not in ("nll", "train_loss")}
    assert any(abs(record["nll"][-1] / record["nll"][0] - 1) > 1e-4 for record in expected)


# a sweep


@pytest.mark.parametrize("name", compare_methods.COMPARISONS)
def test_every_comparison_has_options_of_its_method(name):
    options, method = compare_methods.options_of(name, 3)
    index = ["--index", "index"] if method.retrieves else []
    words = ["--model", "model", "--dataset", "data", *index, *options]
    evaluation = parse_evaluation(EvaluateArguments, [word.replace("RATE", "1e-4") for word in words])
    assert isinstance(evaluation.method, method)


NAMES = ["none", "nearest", "context", "knn-lm", "carried-optimizer", "dynamic"]


@pytest.fixture(scope="module")
def sweep(parts, tmp_path_factory):
    """The words of a sweep over documents of two tasks; its folder comes last."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = [
        {"text": text * 2 + str(number), "meta": {"pile_set_name": task}}
        for task, texts in (("Github", TEXTS[:2]), ("ArXiv", TEXTS[6:8]))
        for number in range(4)
        for text in texts[number % 2 : number % 2 + 1]
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--index", parts / "index", "--embedder", parts / "embedder", "--num_neighbors", 3, "--only", *NAMES]
    words += ["--model", parts / "model", "--dataset", folder / "test.jsonl", "--tasks", "github,arxiv"]
    words += ["--fraction", 0.6, "--max_length", 32, "--query", "document", "--use_cpu", "--disable_tqdm", "True"]
    return [*map(str, words), "--output_dir"]


def records_in(folder):
    """By journal its settings and records, but for the seconds."""
    journals = {}
    for path in sorted(folder.rglob("journal-*.jsonl")):
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        journals[str(path.relative_to(folder))] = [{**line, "seconds": None, "checksum": None} for line in lines]
    return journals


def report_of(folder, monkeypatch):
    """The files of a report of all runs in a folder, after all seconds in their journals have been made the same."""
    for path in sorted(folder.rglob("journal-*.jsonl")):
        settings, records = read_journal(path)
        path.unlink()
        journal = Journal(path)
        journal.open(settings)
        for record in records:
            record.seconds = {"retrieve": 1.0, "train": 2.0, "score": 1.0, "model": 2.0, "total": 4.0}
            journal.append(record)
        journal.close()
    monkeypatch.chdir(folder)
    write_report(NAMES, "report", bootstrap=Bootstrap(num_samples=200))
    return {path.name: path.read_bytes() for path in sorted((folder / "report").iterdir())}


@pytest.mark.slow
def test_a_killed_and_resumed_sweep_has_the_records_and_report_of_an_uninterrupted_one(sweep, tmp_path, monkeypatch):
    def run(folder):
        monkeypatch.setattr(sys, "argv", ["compare_methods.py", *sweep, str(folder)])
        compare_methods.main()
        return records_in(folder)

    whole = run(tmp_path / "whole")
    assert {Path(name).parent.name for name in whole} == set(NAMES)
    killed = subprocess.Popen(
        [sys.executable, EXAMPLES / "compare_methods.py", *sweep, tmp_path / "killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "other hf_home")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = tmp_path / "killed" / "nearest" / "journal-eval.jsonl"
    while killed.poll() is None and not (started.is_file() and started.read_bytes().count(b"\n") > 1):
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    count = sum(map(len, records_in(tmp_path / "killed").values()))
    assert 0 < count < sum(map(len, whole.values()))
    assert run(tmp_path / "killed") == whole
    report = report_of(tmp_path / "whole", monkeypatch)
    assert {"report.md", "report.html", "results.csv", "results.json"} <= set(report)
    assert report_of(tmp_path / "killed", monkeypatch) == report


def test_two_processes_choose_as_one_does_where_a_rate_diverges_on_one_of_them(launched, tmp_path):
    folder, tokenizer = launched
    rate, count = choose_rate(tokenizer, tmp_path, [1e30, 1e-2, 1e-3])
    assert rate in (1e-2, 1e-3)
    assert count == 3
    for rank in (0, 1):
        assert json.loads((folder / f"choice-{rank}.json").read_text()) == [rate, count]


def test_rates_that_all_diverge_are_an_error(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Training diverged at every one of the learning rates"):
        choose_rate(tokenizer, tmp_path, [1e30, 1e31])
