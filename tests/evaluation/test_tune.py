"""Settings chosen on documents of the index: which documents, which neighbors, what is measured, and the file."""

import json
import math
import random

import numpy as np
import pytest
from conftest import TEXTS

from tttnn import Document, NeighborRetriever, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import read_tuning
from tttnn.evaluation import tune_on_index
from tttnn.evaluation.tune import sample_documents
from tttnn.journal import read_journal
from tttnn.methods import Prefix


def long_text(number):
    """About a hundred words that no other number has in this order."""
    words = " ".join(TEXTS).split()
    random.Random(number).shuffle(words)
    return " ".join(words[:100])


CORPUS = [Document(f"doc {number}", long_text(number)) for number in range(12)]
SHORT = [Document(f"short {number}", text[:20]) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def whole_rows(embedder):
    """An index of long and short rows, and of a copy of a long one under another id."""
    return NeighborRetriever.from_documents([*CORPUS, *SHORT, Document("copy", f"A copy: {CORPUS[0].text}")], embedder)


@pytest.fixture
def tune(model, tokenizer, whole_rows, tmp_path):
    def tune(retriever=whole_rows, learning_rates=(1e-3,), output=None, num_documents=4, max_bytes=4000, **settings):
        settings = {"num_neighbors": 3, "max_length": 16, "use_cpu": True, "disable_tqdm": True, **settings}
        args = TestTimeTrainingArguments(output_dir=str(tmp_path / "tuning"), **settings)
        return tune_on_index(model, tokenizer, retriever, args, num_documents, max_bytes, learning_rates, output)

    return tune


# which documents


def test_short_rows_are_passed_over(whole_rows, tokenizer):
    documents = sample_documents(whole_rows.index, tokenizer, 20, 4000, seed=0)
    assert sorted(document.id for document in documents) == sorted(["copy", *(document.id for document in CORPUS)])


def test_the_seed_draws_the_documents(whole_rows, tokenizer):
    first, again, other = (sample_documents(whole_rows.index, tokenizer, 5, 4000, seed) for seed in (0, 0, 1))
    assert first == again
    assert {document.id for document in first} != {document.id for document in other}


def test_a_long_row_is_cut_to_whole_characters(embedder, tokenizer):
    index = NeighborRetriever.from_documents(["é" * 3000, "a" + "é" * 3000], embedder).index
    documents = sample_documents(index, tokenizer, 2, 1001, seed=0)
    assert {document.text for document in documents} == {"é" * 500, "a" + "é" * 500}


def test_a_document_is_drawn_once_however_many_passages_it_has(embedder, tokenizer, monkeypatch):
    monkeypatch.setattr("tttnn.evaluation.tune.MIN_TOKENS", 16)
    book = Document("book", "\n".join(document.text for document in CORPUS))
    index = NeighborRetriever.from_documents([book], embedder, passage_tokens=60).index
    assert len(index) > 5
    assert len(sample_documents(index, tokenizer, 5, 4000, seed=0)) == 1


# which neighbors


def neighbors_in(folder, index):
    """By the id of each document, the ids of its neighbors, over all journals."""
    neighbors = {}
    for path in folder.glob("journal-*.jsonl"):
        for record in read_journal(path)[1]:
            if record.neighbor_ids:
                ids = {document.id for document in index.documents(record.neighbor_ids)}
                neighbors.setdefault(record.id, set()).update(ids)
            assert record.own_neighbors == []
    return neighbors


def test_a_row_and_its_near_copies_are_no_neighbors_of_it(tune, whole_rows, tmp_path):
    tune(num_documents=13)
    neighbors = neighbors_in(tmp_path / "tuning", whole_rows.index)
    assert len(neighbors) == 13
    assert all(name not in ids for name, ids in neighbors.items())
    assert "copy" not in neighbors["doc 0"]
    assert "doc 0" not in neighbors["copy"]


def test_without_the_rules_a_row_is_its_own_neighbor(whole_rows):
    """What the test above would see."""
    ids = [neighbor.metadata["id"] for neighbor in whole_rows.retrieve([CORPUS[0].text], 2)[0]]
    assert sorted(ids) == ["copy", "doc 0"]


def test_passages_of_the_same_document_are_no_neighbors(tune, embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("tttnn.evaluation.tune.MIN_TOKENS", 16)
    books = [Document(f"book {first}", "\n".join(long_text(100 * first + n) for n in range(6))) for first in range(4)]
    retriever = NeighborRetriever.from_documents(books, embedder, passage_tokens=60)
    tune(retriever)
    neighbors = neighbors_in(tmp_path / "tuning", retriever.index)
    assert len(neighbors) > 1
    assert all(name not in ids for name, ids in neighbors.items())


# what is measured


def test_the_curve_has_a_row_for_each_method_and_number_of_neighbors(tune):
    tuning = tune(learning_rates=(1e-3, 1e-2))
    names = ("learning_rate", "num_neighbors", "mix")
    rows = [(row.method, *(row.settings.get(name) for name in names)) for row in tuning.curve]
    mixes = ("none", "both")
    assert rows == [
        ("prefix", None, None, None),
        *(("context", None, 3, mix) for mix in mixes),
        *(("ttt", rate, number, mix) for rate in (1e-3, 1e-2) for number in (1, 2, 3) for mix in mixes),
        *(("context+ttt", 2e-5, 3, mix) for mix in mixes),
    ]
    best = min(tuning.curve[3:-2], key=lambda row: row.bits_per_byte)
    assert tuning.settings == best.settings
    assert tuning.settings["max_length"] == 16


@pytest.mark.parametrize("mix", ["none", "both"])
def test_scores_are_those_of_a_run_with_the_settings_of_the_row(
    tune, model, tokenizer, whole_rows, make_trainer, tmp_path, mix
):
    tuning = tune()
    documents = sample_documents(whole_rows.index, tokenizer, 4, 4000, seed=42)
    settings = {"num_neighbors": 2, "max_length": 16, "learning_rate": 1e-3, "top_k": 23, "mix": mix}
    trainer = make_trainer(retriever=whole_rows, exclude="id", drop_near_copies=True, **settings)
    metrics = trainer.evaluate(documents)
    (row,) = (
        row
        for row in tuning.curve
        if row.method == "ttt" and (row.settings["num_neighbors"], row.settings["mix"]) == (2, mix)
    )
    assert row.bits_per_byte == pytest.approx(metrics["eval_bits_per_byte"], rel=1e-6)
    assert tuning.prefix.bits_per_byte == pytest.approx(metrics["eval_bits_per_byte_before"], rel=1e-6)
    assert row.difference == pytest.approx(row.bits_per_byte - tuning.prefix.bits_per_byte, abs=1e-9)
    assert row.interval[0] <= row.difference <= row.interval[1]
    assert row.tokens_trained == pytest.approx(np.mean([record.num_trained_tokens for record in trainer.records]))


def test_tokens_are_counted_as_the_model_sees_them(tune, model, tokenizer, whole_rows):
    tuning = tune()
    documents = sample_documents(whole_rows.index, tokenizer, 4, 4000, seed=42)
    seen = []
    trainer = TestTimeTrainer(
        model,
        TestTimeTrainingArguments(use_cpu=True, disable_tqdm=True, report_to="none"),
        method=Prefix(),
        processing_class=tokenizer,
    )
    with model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    ):
        trainer.evaluate(documents)
    assert tuning.prefix.tokens_read == sum(seen) / 4
    assert tuning.prefix.tokens_trained == 0
    rows = {row.method: row for row in tuning.curve}
    assert rows["ttt"].tokens_read == tuning.prefix.tokens_read
    assert rows["context"].tokens_read > tuning.prefix.tokens_read
    assert rows["context"].tokens_trained == 0
    # three neighbors, each cut to a chunk of 16 tokens
    assert (rows["ttt"].tokens_trained, rows["context+ttt"].tokens_trained) == (48, 48)
    assert all(row.seconds > 0 for row in tuning.curve)


def test_a_rate_that_diverges_is_out(tune):
    tuning = tune(learning_rates=(1e30, 1e-3))
    assert {row.settings["learning_rate"] for row in tuning.curve if row.method == "ttt"} == {1e-3}


def test_rates_that_all_diverge_are_told(tune):
    with pytest.raises(ValueError, match="Training diverged at every one of the learning rates"):
        tune(learning_rates=(1e30,))


# the file


def test_the_file_holds_what_was_measured(tune, whole_rows, tmp_path):
    tuning = tune(output=tmp_path / "mine.json", seed=7)
    assert read_tuning(tmp_path / "mine.json") == tuning
    content = json.loads((tmp_path / "mine.json").read_text())
    assert content["tttnn_tuning"] == 1
    assert (content["index"], content["num_documents"], content["seed"]) == (whole_rows.index.digest, 4, 7)
    assert set(content["versions"]) == {"tttnn", "torch", "transformers"}


def test_a_second_run_resumes_from_the_journals(tune, tmp_path, monkeypatch):
    first = tune()
    journals = {path.name: path.read_bytes() for path in (tmp_path / "tuning").glob("journal-*.jsonl")}
    assert set(journals) == {
        f"journal-tune-{name}.jsonl" for name in ("prefix", "context", "ttt-0.001", "context+ttt")
    }
    (tmp_path / "tuning" / "tuned.json").unlink()
    path = tmp_path / "tuning" / "journal-tune-ttt-0.001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))  # as a kill after two documents leaves it
    again = tune()
    assert again.settings == first.settings
    assert [row.bits_per_byte for row in again.curve] == [row.bits_per_byte for row in first.curve]
    assert path.read_bytes().startswith(b"".join(lines[:3]))
    assert (tmp_path / "tuning" / "tuned.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_documents": 1}, "`num_documents` is 1"),
        ({"max_bytes": 0}, "`max_document_bytes` is 0"),
        ({"max_bytes": 30}, "The index has 0 documents of at least 64 tokens"),
        ({"learning_rates": ()}, "There is no learning rate to try"),
        ({"learning_rates": (math.nan,)}, "`learning_rates` has nan"),
        ({"learning_rates": (1e-3, 1e-3)}, "a rate twice"),
        ({"num_neighbors": 23}, "The index holds 23 rows, and each needs 23 others"),
        ({"num_train_epochs": 2}, "at 1"),
    ],
)
def test_what_cannot_be_tuned_is_told(tune, options, message):
    with pytest.raises(ValueError, match=message):
        tune(**options)


def test_passages_that_are_cut_on_the_way_are_refused(tune, embedder):
    retriever = NeighborRetriever.from_documents(CORPUS, embedder)
    retriever.passage_length = 8
    with pytest.raises(ValueError, match="`passage_length`"):
        tune(retriever)
