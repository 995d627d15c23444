"""The journal: what is in it, and that an evaluation that was killed resumes and gives the same numbers."""

import copy
import json
import math
import os
import resource
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import TEXTS, GivenRetriever
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tttnn import (
    Document,
    DocumentRecord,
    JournalCallback,
    NeighborEarlyStoppingCallback,
    TestTimeCallback,
    TestTimeTrainer,
    TestTimeTrainingArguments,
)
from tttnn.adaptation import weights_digest
from tttnn.journal import LATER, Journal, _with_checksum, read_journal
from tttnn.methods import Context


DOCUMENTS = [
    {"text": "The captain saw the whale from the boat.", "id": "a", "year": 1851},
    {"text": "def load(path):\n    return json.load(path)\n", "id": "b"},
    {"text": "Größe: 東京 and Ελλάδα, said the crew.", "id": "c"},
    {"text": "Let x be rational; then x equals p over q.", "id": "d", "place": "東京"},
]
NEIGHBORS = ["The white whale was seen.", "import json", "Let x be a rational number.", "The captain wrote.", "e"]
TIMES = ("runtime", "per_second")


def build(parts, output_dir, callbacks=(), retriever=None, method=None, **settings):
    """Make a trainer of what lies in a folder, in this process or in another."""
    defaults = {
        "num_neighbors": 5,
        "order": "random",
        "max_length": 32,
        "learning_rate": 1e-3,
        "disable_dropout": False,  # so that numbers depend on the state of the random generators
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TestTimeTrainer(
        AutoModelForCausalLM.from_pretrained(parts),
        TestTimeTrainingArguments(str(output_dir), **{**defaults, **settings}),
        retriever or GivenRetriever(NEIGHBORS),
        processing_class=AutoTokenizer.from_pretrained(parts),
        eval_dataset=DOCUMENTS,
        callbacks=list(callbacks),
        method=method,
    )


@pytest.fixture(scope="module")
def parts(tiny_models, tokenizer, tmp_path_factory):
    """A model and its tokenizer on disk, where another process finds them."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_models["gpt2"].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(parts, tmp_path):
    def make(callbacks=None, output_dir=tmp_path / "run", **settings):
        return build(parts, output_dir, [JournalCallback()] if callbacks is None else callbacks, **settings)

    return make


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal-eval.jsonl"


def numbers(metrics):
    """Metrics without times of this run; those of the journal stay."""
    return {name: value for name, value in metrics.items() if not any(time in name for time in TIMES)}


def without_seconds(trainer):
    """Everything in the records but their times, to the bit; written out, since no NaN equals another."""
    return [replace(record, seconds={}).to_json() for record in trainer.records]


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def lines(path):
    """The lines of a journal, by a parser that takes no NaN."""
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return [json.loads(line, parse_constant=refuse) for line in content.decode("utf-8").splitlines()]


class RaiseAt(TestTimeCallback):
    def __init__(self, index, error):
        self.index, self.error = index, error

    def on_document_begin(self, args, state, control, record, **kwargs):
        if record.index == self.index:
            raise self.error


# --- what is in it ---


def test_a_journal_holds_its_settings_and_a_line_per_document(make, path):
    trainer = make()
    trainer.evaluate()
    header, *rows = lines(path)
    assert header["tttnn_journal"] == 4
    assert header["settings"]["num_neighbors"] == 5
    assert header["settings"]["learning_rate"] == 1e-3
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[0]["metadata"] == {"year": 1851}
    for row, record in zip(rows, trainer.records, strict=True):
        assert row["nll"] == record.nll, "to the last digit"
        assert row["neighbor_ids"] == record.neighbor_ids
        assert row["seconds"] == record.seconds


def test_a_nan_loss_is_null_in_the_file_and_nan_when_read_again(make, path):
    trainer = make()
    trainer.evaluate()
    place = trainer.records[0].neighbor_ids.index(4)  # "e", one token and so nothing to predict
    assert lines(path)[1]["train_loss"][place] is None
    again = make()
    again.evaluate()
    for trained in (trainer, again):
        assert [place for place, loss in enumerate(trained.records[0].train_loss) if math.isnan(loss)] == [place]


def test_evaluate_predict_and_each_data_set_have_a_journal_of_their_own(make, tmp_path):
    trainer = make()
    trainer.evaluate()
    trainer.predict(DOCUMENTS[:1])
    trainer.evaluate({"prose": DOCUMENTS[:1], "code": DOCUMENTS[1:2]})
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["journal-eval.jsonl", "journal-eval_code.jsonl", "journal-eval_prose.jsonl", "journal-test.jsonl"]
    assert len(lines(tmp_path / "run" / "journal-eval_code.jsonl")) == 2


def test_a_journal_goes_to_the_folder_that_is_named(make, tmp_path):
    make([JournalCallback(tmp_path / "elsewhere" / "deep")]).evaluate()
    assert (tmp_path / "elsewhere" / "deep" / "journal-eval.jsonl").is_file()
    assert list(tmp_path.glob("run/journal*")) == []


def test_adapt_writes_no_journal(make, tmp_path):
    trainer = make()
    with trainer.adapt("The captain"):
        pass
    assert list(tmp_path.glob("run/*")) == []
    trainer.evaluate()
    size = (tmp_path / "run" / "journal-eval.jsonl").stat().st_size
    with trainer.adapt("The captain"):
        pass
    assert (tmp_path / "run" / "journal-eval.jsonl").stat().st_size == size


def test_metadata_of_any_kind_is_written(make, path):
    row = {
        "text": "The captain saw the whale.",
        "nan": math.nan,
        "infinite": math.inf,
        "nested": {"list": [1, math.nan]},
        "line ends": "a\nb\rc\u2028d",
        "day": date(2024, 2, 29),
        "bytes": b"\xff",
        "number": torch.tensor(3).numpy(),
    }
    trainer = make()
    trainer.evaluate([row, *DOCUMENTS[1:]])
    assert len(lines(path)) == 5
    again = make()
    again.evaluate([row, *DOCUMENTS[1:]])
    assert again.retriever.queries == []
    assert again.records[0].nll == trainer.records[0].nll
    assert again.records[0].metadata["line ends"] == row["line ends"]
    assert again.records[0].metadata["nested"]["list"][0] == 1


def test_a_record_comes_back_from_json_as_it_was():
    record = DocumentRecord(3, "0" * 16, "Größe", {"a": [1, "東"]}, 10, 2, "untrained", "TimeoutError: slow")
    record.nll, record.train_loss, record.distances = [1 / 3, 1e-300], [2 / 3], [0.1]
    assert DocumentRecord.from_json(record.to_json()) == record


# --- started again ---


def test_a_finished_evaluation_started_again_trains_nothing_and_says_the_same(make, path):
    trainer = make()
    metrics, content = trainer.evaluate(), path.read_bytes()
    again = make()
    assert numbers(again.evaluate()) == numbers(metrics)
    assert again.retriever.queries == []
    assert path.read_bytes() == content
    same_trainer = numbers(trainer.evaluate())
    assert same_trainer == numbers(metrics)
    assert len(trainer.retriever.queries) == 4


@pytest.mark.parametrize("reset_optimizer", [True, False])
def test_an_evaluation_stopped_by_an_error_goes_on_to_the_same_numbers(make, tmp_path, reset_optimizer):
    settings = {"reset_optimizer": reset_optimizer}
    reference = make(output_dir=tmp_path / "reference", **settings)
    metrics = reference.evaluate()
    with pytest.raises(ZeroDivisionError):
        make([JournalCallback(), RaiseAt(2, ZeroDivisionError())], **settings).evaluate()
    trainer = make(**settings)
    resumed = trainer.evaluate()
    assert len(trainer.retriever.queries) == 2
    assert without_seconds(trainer) == without_seconds(reference)
    for name in ("bits_per_byte_before", "bits_per_byte", "bits_per_byte_ratio", "word_perplexity"):
        assert resumed[f"eval_{name}"] == metrics[f"eval_{name}"], "bitwise"


def test_an_untrained_document_stays_one_and_is_counted_when_going_on(make):
    make(retriever=GivenRetriever([])).evaluate()
    trainer = make()
    assert trainer.evaluate()["eval_num_untrained"] == 4


def test_going_on_with_a_longer_data_set_does_the_rest(make):
    trainer = make()
    trainer.evaluate(DOCUMENTS[:2])
    longer = make()
    longer.evaluate()
    assert len(longer.retriever.queries) == 2
    fresh = make([])
    fresh.evaluate()
    assert without_seconds(longer) == without_seconds(fresh)


@pytest.mark.parametrize("reset_optimizer", [True, False])
def test_a_shorter_data_set_has_the_metrics_of_its_own_documents(make, reset_optimizer):
    make(reset_optimizer=reset_optimizer).evaluate()
    trainer = make(reset_optimizer=reset_optimizer)
    metrics = trainer.evaluate(DOCUMENTS[:2])
    assert metrics["eval_num_documents"] == 2
    assert [record.id for record in trainer.records] == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [b"", b'{"tttnn_jour', "half".encode("utf-16"), b'{"tttnn_journal": 2, "settings": {"seed": 9}}\n'],
    ids=["empty", "half a line", "noise", "other settings"],
)
def test_a_journal_without_a_record_has_nothing_to_lose_and_is_replaced(make, path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    make().evaluate()
    assert len(lines(path)) == 5


def test_a_line_cut_in_a_character_is_done_again(make, path):
    trainer = make()
    trainer.evaluate()
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[: len(last) // 2] + "東".encode()[:1])
    again = make()
    again.evaluate()
    assert len(again.retriever.queries) == 1
    assert without_seconds(again) == without_seconds(trainer)
    assert len(lines(path)) == 5


def test_every_process_writes_a_file_and_reads_all(tmp_path):
    def record(index):
        return DocumentRecord(index, "0" * 16, str(index), {}, 1, 1, nll=[1.0])

    settings = {"a": 1}
    first, second = Journal(tmp_path / "j.jsonl", rank=0), Journal(tmp_path / "j.jsonl", rank=1)
    assert first.open(settings) == second.open(settings) == {}
    first.append(record(0))
    second.append(record(1))
    first.close(), second.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j.jsonl", "j.rank1.jsonl"]
    # started again with one process, or with three
    for rank in (0, 1, 2):
        journal = Journal(tmp_path / "j.jsonl", rank)
        assert sorted(journal.open(settings)) == [0, 1]
        journal.close()


def test_a_folder_with_brackets_in_its_name_is_a_folder(make, tmp_path):
    for reset_optimizer in (True, False):
        folder = tmp_path / f"run [{reset_optimizer}]*"
        make(output_dir=folder, reset_optimizer=reset_optimizer).evaluate({"a[b]": DOCUMENTS})
        again = make(output_dir=folder, reset_optimizer=reset_optimizer)
        again.evaluate({"a[b]": DOCUMENTS})
        assert again.retriever.queries == []
        assert len(list(folder.glob("*.safetensors"))) == (not reset_optimizer)


# --- refused, not mixed ---

OTHER_SETTINGS = {
    "learning_rate": 2e-3,
    "num_neighbors": 3,
    "order": "nearest",
    "query": "document",
    "max_length": 16,
    "chunks_per_neighbor": None,
    "score_every_neighbor": True,
    "reset_optimizer": False,
    "disable_dropout": True,
    "drop_near_copies": True,
    "exclude": "id",
    "selector": "sift",
    "distinct": "document",
    "max_distance": 1e9,
    "weight_decay": 0.5,
    "max_grad_norm": 0.5,
    "adam_beta1": 0.8,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "optim": "adafactor",
    "seed": 7,
    "bf16": True,
}


@pytest.fixture(scope="module")
def finished(parts, tmp_path_factory):
    """The folder of a finished evaluation."""
    folder = tmp_path_factory.mktemp("finished")
    build(parts, folder, [JournalCallback()]).evaluate()
    return folder


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_journal_of_other_settings_is_refused_and_kept(make, finished, name):
    content = (finished / "journal-eval.jsonl").read_bytes()
    trainer = make(output_dir=finished, **{name: OTHER_SETTINGS[name]})
    with pytest.raises(ValueError) as caught:
        trainer.evaluate()
    message = str(caught.value)
    assert f"`{name}` was " in message
    assert f"is now {json.loads(json.dumps(getattr(trainer.args, name), default=str))!r}" in message
    assert str(finished / "journal-eval.jsonl") in message
    assert "Choose another folder, or remove it" in message
    assert (finished / "journal-eval.jsonl").read_bytes() == content


@pytest.mark.parametrize("name", ["logging_steps", "disable_tqdm", "per_device_eval_batch_size", "report_to"])
def test_a_setting_without_a_say_in_the_numbers_may_change(make, finished, name):
    value = {"logging_steps": 1, "disable_tqdm": False, "per_device_eval_batch_size": 4, "report_to": "none"}[name]
    trainer = make(output_dir=finished, **{name: value})
    trainer.evaluate()
    assert trainer.retriever.queries == []


def test_a_journal_of_other_weights_is_refused(make, finished):
    trainer = make(output_dir=finished)
    with torch.no_grad():
        trainer.model.transformer.wpe.weight += 1e-6
    with pytest.raises(ValueError, match="`weights` was"):
        trainer.evaluate()


def test_a_journal_of_the_same_weights_in_another_place_is_refused(make, finished):
    trainer = make(output_dir=finished)
    with torch.no_grad():
        weight = trainer.model.transformer.wpe.weight
        weight[:2] = weight[:2].flip(0).clone()
    with pytest.raises(ValueError, match="`weights` was"):
        trainer.evaluate()


def test_a_journal_of_another_model_under_the_same_adapters_is_refused(parts, tmp_path):
    """Only adapters are trained, but what they are put on decides the numbers."""
    from peft import LoraConfig, get_peft_model  # takes seconds, and other processes import this file

    for change in (0.0, 1.0):
        trainer = build(parts, tmp_path, [JournalCallback()])
        with torch.no_grad():
            trainer.model.transformer.wpe.weight.add_(change)
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        model = get_peft_model(copy.deepcopy(trainer.model), lora)
        trainer = TestTimeTrainer(
            model,
            trainer.args,
            GivenRetriever(NEIGHBORS),
            processing_class=trainer.processing_class,
            callbacks=[JournalCallback()],
        )
        if change == 0.0:
            trainer.evaluate(DOCUMENTS)
    with pytest.raises(ValueError, match="`weights` was"):
        trainer.evaluate(DOCUMENTS)


@pytest.mark.parametrize("patience", [None, 2])
def test_a_journal_with_another_early_stop_is_refused(make, patience):
    def callbacks(patience):
        stop = [] if patience is None else [NeighborEarlyStoppingCallback(patience)]
        return [JournalCallback(), *stop]

    make(callbacks(1)).evaluate()
    with pytest.raises(ValueError, match="was written with other settings: `early_stop"):
        make(callbacks(patience)).evaluate()
    again = make(callbacks(1))
    again.evaluate()
    assert again.retriever.queries == []


def test_a_journal_of_an_optimizer_of_the_users_own_is_refused(make, finished):
    trainer = make(output_dir=finished)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="`optimizer` was"):
        trainer.evaluate()


def test_a_journal_of_another_index_is_refused(make_trainer, embedder, documents):
    from conftest import TEXTS

    from tttnn import NeighborRetriever

    make_trainer(callbacks=[JournalCallback()], eval_dataset=documents).evaluate()
    other = NeighborRetriever.from_documents([*TEXTS[:-1], "Another text."], embedder)
    with pytest.raises(ValueError, match="`index` was"):
        make_trainer(callbacks=[JournalCallback()], eval_dataset=documents, retriever=other).evaluate()


def test_a_journal_of_another_data_set_is_refused(make, finished):
    changed = [DOCUMENTS[0], {"text": "Another text.", "id": "z"}, *DOCUMENTS[2:]]
    with pytest.raises(ValueError, match=r"Document 1 \('z'\) is not the one in the journal \('b'\).*another folder"):
        make(output_dir=finished).evaluate(changed)


def test_documents_are_those_of_the_journal_whatever_their_files_are_called(make, finished):
    """For example if a file is read beside another of its name."""
    content = (finished / "journal-eval.jsonl").read_bytes()
    renamed = [{**document, "id": f"folder/{document['id']}", "source": "folder"} for document in DOCUMENTS]
    trainer = make(output_dir=finished)
    trainer.evaluate(renamed)
    assert [record.id for record in trainer.records] == ["a", "b", "c", "d"]
    assert (finished / "journal-eval.jsonl").read_bytes() == content


def test_a_document_with_another_id_is_another_one_where_neighbors_are_excluded_by_it(make, path):
    make(exclude="id").evaluate(DOCUMENTS)
    content = path.read_bytes()
    renamed = [*DOCUMENTS[:2], {**DOCUMENTS[2], "id": "folder/c"}, DOCUMENTS[3]]
    with pytest.raises(ValueError, match=r"Document 2 \('folder/c'\) is not the one in the journal \('c'\).*: id\)"):
        make(exclude="id").evaluate(renamed)
    assert path.read_bytes() == content


def test_metadata_of_any_kind_are_those_of_the_journal(make, path):
    values = {1: "x", "date": date(2026, 1, 2), "nan": math.nan, "tags": {"a", "b", "c"}, "thing": object()}
    documents = [Document(name, TEXTS[0], {**values, "number": np.float32(0.1)}) for name in "ab"]
    make().evaluate(documents)
    changed = [Document(item.id, item.text, {**item.metadata, "thing": object()}) for item in documents]
    make().evaluate(changed)
    changed[1].metadata[1] = "y"
    with pytest.raises(ValueError, match=r"Document 1 .* \(different: 1\)"):
        make().evaluate(changed)


@pytest.mark.parametrize("exclude", [None, "source"])
def test_a_document_of_another_group_is_another_one(make, path, exclude):
    """A report would put its score into the wrong row, or neighbors of its source would have been kept."""
    name = exclude or "pile_set_name"
    rows = [{**document, name: "one"} for document in DOCUMENTS]
    make(exclude=exclude).evaluate(rows)
    with pytest.raises(ValueError, match=rf"Document 1 .* \(different: {name}\)"):
        make(exclude=exclude).evaluate([rows[0], {**rows[1], name: "another"}, *rows[2:]])


@pytest.mark.parametrize(
    ("change", "name"),
    [("bos", "prefix_token"), ("vocabulary", "tokenizer_digest"), ("config", "config_digest")],
)
def test_a_run_whose_tokenizer_or_config_changed_is_not_resumed(make, path, change, name):
    make(prompt="none").evaluate()
    content = path.read_bytes()
    trainer = make(prompt="none")
    if change == "bos":
        trainer.processing_class.bos_token = trainer.processing_class.convert_ids_to_tokens(70)
    elif change == "vocabulary":
        trainer.processing_class.add_tokens(["captain"])
        trainer = TestTimeTrainer(
            trainer.model,
            trainer.args,
            trainer.retriever,
            processing_class=trainer.processing_class,
            callbacks=[JournalCallback()],
        )
    else:
        trainer.model.config.layer_norm_epsilon = 0.1
    with pytest.raises(ValueError, match=f"`{name}` was "):
        trainer.evaluate(DOCUMENTS)
    assert path.read_bytes() == content


def test_documents_in_another_order_are_another_data_set(make, finished):
    with pytest.raises(ValueError, match="is not the one in the journal"):
        make(output_dir=finished).evaluate(DOCUMENTS[::-1])


@pytest.mark.parametrize(
    "content",
    [
        b"a text\nof the user's own\n",
        b'{"a": 1}\n{"b": 2}\n',
        b"[]\n[]\n",
        b"\xff\xfe\n\n",
        b'{"tttnn_journal": 2, "settings": SETTINGS}\n{"index": 0}\n',
        pytest.param(
            b'{"tttnn_journal": 99, "settings": SETTINGS}\nRECORD\n',
        ),
    ],
    ids=["text", "json", "list", "bytes", "other fields", "later version"],
)
def test_a_file_that_is_no_journal_of_this_version_is_refused_and_kept(make, path, finished, content):
    header, record, *_ = (finished / "journal-eval.jsonl").read_bytes().splitlines()
    settings = json.dumps(json.loads(header)["settings"]).encode()
    content = content.replace(b"SETTINGS", settings).replace(b"RECORD", record)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no journal of this version of tttnn.*Move it away"):
        make().evaluate()
    assert path.read_bytes() == content


def test_a_journal_damaged_in_the_middle_is_refused_and_kept(make, path, finished):
    path.parent.mkdir()
    content = (finished / "journal-eval.jsonl").read_bytes().splitlines(keepends=True)
    content[2] = content[2][:30] + b"\n"
    path.write_bytes(b"".join(content))
    with pytest.raises(ValueError, match="Line 3 of .* is damaged: its checksum is not that of its content"):
        make().evaluate()
    assert path.read_bytes() == b"".join(content)


def test_a_changed_digit_is_noticed(make, path, finished):
    path.parent.mkdir()
    content = (finished / "journal-eval.jsonl").read_text()
    start = content.index('"nll": [') + len('"nll": [')
    digit = content[start]
    path.write_text(content[:start] + str((int(digit) + 1) % 10) + content[start + 1 :])
    with pytest.raises(ValueError, match="Line 2 of .* is damaged"):
        make().evaluate()


def test_a_journal_without_checksums_of_version_2_resumes(make, path, finished):
    path.parent.mkdir()
    lines = [json.loads(line) for line in (finished / "journal-eval.jsonl").read_text().splitlines()]
    for line in lines:
        del line["checksum"]
    lines[0]["tttnn_journal"] = 2
    for name in ("cut", "router_aux_loss", *LATER, "rules"):
        del lines[0]["settings"][name]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    trainer = make(cut="tokens")  # as all runs of version 2 did
    trainer.evaluate()
    assert len(path.read_text().splitlines()) == len(lines)
    assert trainer.records[0].nll == lines[1]["nll"]


def test_weights_that_lie_elsewhere_have_a_digest(parts):
    model = AutoModelForCausalLM.from_pretrained(parts)
    before = weights_digest(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta
    assert weights_digest(model) != before


# What journals of version 3 do not name, and what it was in their runs.
NEW_SETTINGS = {"selector": "nearest", "distinct": None, "passage_length": None, "mix": "none"}
NEW_SETTINGS |= {"prompt": "none", "window_length": None, "stride": None, "train_on": "neighbors"}


@pytest.mark.parametrize("prompt", ["context", "none"])
def test_a_journal_names_the_windows_that_the_model_has(make, path, prompt):
    trainer = make(prompt=prompt)
    trainer.evaluate()
    settings, _ = read_journal(path)
    window, stride = {"context": (64, 32), "none": (trainer.max_length, trainer.max_length)}[prompt]
    assert (settings["window_tokens"], settings["stride_tokens"]) == (window, stride)


def as_before(path, **settings):
    """Leave one document in a journal, and out of its settings what it did not name before December 2026."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for name in (*LATER, "rules"):
        del lines[0]["settings"][name]
    lines[0]["settings"] |= settings
    for line in lines:
        del line["checksum"]
    path.write_text("".join(_with_checksum(json.dumps(line)) + "\n" for line in lines[:2]))


def test_a_journal_from_before_windows_were_named_resumes(make, path):
    trainer = make(prompt="context")
    trainer.evaluate()
    as_before(path)
    with pytest.raises(ValueError, match="`window_length` was None and is now 16"):
        make(prompt="context", window_length=16, stride=3).evaluate()
    resumed = make(prompt="context")
    resumed.evaluate()
    assert [record.nll for record in resumed.records] == [record.nll for record in trainer.records]


@pytest.mark.parametrize("options", [{"drop_near_copies": True}, {"method": Context()}])
def test_a_journal_whose_rules_were_others_is_not_resumed(make, path, options):
    """Near-copies were found otherwise, and neighbors were not parted from a prompt that lost its beginning."""
    make(prompt="context", **options).evaluate()
    as_before(path)
    with pytest.raises(ValueError, match="written by another version of tttnn, which gives other numbers"):
        make(prompt="context", **options).evaluate()


def without_new_settings(finished, path):
    """Write the journal of a finished run as an earlier tttnn did, with one document done."""
    path.parent.mkdir()
    lines = [json.loads(line) for line in (finished / "journal-eval.jsonl").read_text().splitlines()[:2]]
    for name in (*NEW_SETTINGS, *LATER, "rules"):
        lines[0]["settings"].pop(name, None)
    lines[0]["tttnn_journal"] = 3
    for line in lines:
        del line["checksum"]
    path.write_text("".join(_with_checksum(json.dumps(line)) + "\n" for line in lines))
    return lines


def test_a_journal_from_before_there_were_prompts_and_selectors_resumes(make, path, finished):
    lines = without_new_settings(finished, path)
    trainer = make(prompt="none")
    trainer.evaluate()
    assert trainer.records[0].nll == lines[1]["nll"]
    settings, _ = read_journal(path)
    assert {name: settings[name] for name in NEW_SETTINGS} == NEW_SETTINGS


@pytest.mark.parametrize(
    ("name", "value"),
    [("distinct", "text"), ("selector", "hull"), ("mix", "cache"), ("prompt", "context"), ("train_on", "both")],
)
def test_a_journal_from_before_there_were_prompts_and_selectors_is_not_mixed_with_theirs(
    make, path, finished, name, value
):
    without_new_settings(finished, path)
    with pytest.raises(ValueError, match=f"`{name}` was "):
        make(**{"prompt": "none", name: value}).evaluate()


def test_a_journal_that_another_process_writes_is_refused(make, path):
    journal = Journal(path)
    journal.open({})
    content = path.read_bytes()
    with pytest.raises(RuntimeError, match="Another process is writing"):
        make().evaluate()
    assert path.read_bytes() == content
    journal.close()
    make().evaluate()


def test_a_refused_journal_leaves_the_model_as_it_came(make, finished):
    trainer = make(output_dir=finished, seed=7)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(ValueError):
        trainer.evaluate()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


# --- a carried optimizer ---


def test_the_state_of_a_carried_optimizer_is_kept_after_the_last_document_only(make, tmp_path):
    trainer = make(reset_optimizer=False)
    trainer.evaluate()
    (file,) = (tmp_path / "run").glob("*.safetensors")
    assert file.name == "journal-eval-optimizer-3.safetensors"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [file.name, "journal-eval.jsonl"]
    tensors = load_file(file)
    parameters = len(list(trainer.model.parameters()))
    assert len(tensors) == 3 * parameters, "step, and two moments"
    # five neighbors in each of four documents; a chunk of one token steps too
    assert tensors["0.step"].item() == 20


def test_without_the_state_of_a_carried_optimizer_going_on_is_refused(make, tmp_path):
    with pytest.raises(ZeroDivisionError):
        make([JournalCallback(), RaiseAt(2, ZeroDivisionError())], reset_optimizer=False).evaluate()
    (file,) = (tmp_path / "run").glob("*.safetensors")
    file.unlink()
    with pytest.raises(RuntimeError, match=r"document 1.*optimizer-1.safetensors.*missing.*remove the journal"):
        make(reset_optimizer=False).evaluate()


def test_a_carried_optimizer_goes_on_after_documents_without_a_step(make, tmp_path):
    class FromTheThird(GivenRetriever):
        def retrieve(self, texts, top_k):
            found = super().retrieve(texts, top_k)
            return found if len(self.queries) > self.empty else [[]]

    def retriever(empty):
        retriever = FromTheThird(NEIGHBORS)
        retriever.empty = empty
        return retriever

    settings = {"reset_optimizer": False}
    reference = make([], retriever=retriever(2), **settings)
    reference.evaluate()
    with pytest.raises(ZeroDivisionError):
        callbacks = [JournalCallback(), RaiseAt(2, ZeroDivisionError())]
        make(callbacks, retriever=retriever(2), **settings).evaluate()
    trainer = make(retriever=retriever(0), **settings)
    trainer.evaluate()
    assert [record.status for record in trainer.records] == ["untrained", "untrained", "trained", "trained"]
    assert without_seconds(trainer) == without_seconds(reference)


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "rmsprop"])
def test_other_optimizers_are_carried_on_too(make, tmp_path, optim):
    settings = {"reset_optimizer": False, "optim": optim}
    reference = make([], **settings)
    reference.evaluate()
    with pytest.raises(ZeroDivisionError):
        make([JournalCallback(), RaiseAt(2, ZeroDivisionError())], **settings).evaluate()
    trainer = make(**settings)
    trainer.evaluate()
    assert without_seconds(trainer) == without_seconds(reference)


# --- killed, and a full disk: in separate processes ---


class KillAt(TestTimeCallback):
    """Kills its own process, as kill -9 would, at an event of a document."""

    def __init__(self, event, index):
        self.index, self.here = index, False
        setattr(self, event, self.kill)
        if event == "on_step_end":
            self.on_document_begin = self.begin

    def begin(self, args, state, control, record, **kwargs):
        self.here = record.index == self.index

    def kill(self, args, state, control, record=None, **kwargs):
        if self.here if record is None else record.index == self.index:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_half_way_through_line(number):
    """Let the journal write half of its n-th line, and be killed."""
    write, count = Journal._write, 0

    def half(journal, line):
        nonlocal count
        count += 1
        if count == number:
            journal._file.write(line.encode("utf-8")[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(journal, line)

    Journal._write = half


def kill_before_line(number):
    write, count = Journal._write, 0

    def killed(journal, line):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(journal, line)

    Journal._write = killed


def kill_at_replace(number):
    replace_file, count = os.replace, 0

    def killed(*paths):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(*paths)

    os.replace = killed


class FillDisk(TestTimeCallback):
    """Lets no file grow past a size from a document on: what a full disk does, and unlike it needs no disk."""

    def __init__(self, index, room):
        self.index, self.room = index, room

    def on_document_end(self, args, state, control, record, **kwargs):
        if record.index == self.index:
            journal = Path(args.output_dir) / "journal-eval.jsonl"
            resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + self.room, resource.RLIM_INFINITY))


CARRIED = {"reset_optimizer": False}

# name: what happens before the evaluation, callbacks before and after the journal's, settings, documents that are done
KILLS = {
    "in training": (None, [KillAt("on_step_end", 2)], [], {}, 2),
    "before the line": (None, [KillAt("on_document_end", 2)], [], {}, 2),
    "after the line": (None, [], [KillAt("on_document_end", 2)], {}, 3),
    "in the first line": (lambda: kill_half_way_through_line(1), [], [], {}, 0),
    "half-way through a line": (lambda: kill_half_way_through_line(4), [], [], {}, 2),
    "carried, in training": (None, [KillAt("on_step_end", 2)], [], CARRIED, 2),
    "carried, before the state's file is whole": (lambda: kill_at_replace(3), [], [], CARRIED, 2),
    "carried, between the state's file and the line": (lambda: kill_before_line(4), [], [], CARRIED, 2),
    "carried, half-way through a line": (lambda: kill_half_way_through_line(4), [], [], CARRIED, 2),
    "carried, after the line": (None, [], [KillAt("on_document_end", 2)], CARRIED, 3),
}
# name: room that is left after document 1, settings
FULL_DISKS = {"in a line": (100, {}), "at a line": (0, {}), "carried, in the state's file": (5000, CARRIED)}


def evaluate_and_die(parts, folder, name):
    prepare, before, after, settings, _ = KILLS[name]
    if prepare is not None:
        prepare()
    build(parts, folder / name, [*before, JournalCallback(), *after], **settings).evaluate()


def evaluate_on_a_full_disk(parts, folder, name):
    room, settings = FULL_DISKS[name]
    trainer = build(parts, folder / name, [FillDisk(2, room), JournalCallback()], **settings)
    before = copy.deepcopy(trainer.model.state_dict())
    caught = None
    try:
        trainer.evaluate()
    except Exception as error:
        caught = error
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    restored = all(torch.equal(tensor, before[key]) for key, tensor in trainer.model.state_dict().items())
    result = {"type": type(caught).__name__, "is OSError": isinstance(caught, OSError), "message": str(caught)}
    result |= {"restored": restored, "optimizer": not trainer.optimizer.state}
    (folder / f"{name}.json").write_text(json.dumps(result))


def run_in_forks(parts, folder):
    """Run every scenario in a child of this process, which has loaded all that they need; note how each ended."""
    torch.set_num_threads(1)
    # a first step imports for seconds; but no backward pass may be before a fork
    build(parts, folder / "no run")
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    torch.optim.AdamW([parameter]).step()
    ends = {}
    for run, names in ((evaluate_and_die, KILLS), (evaluate_on_a_full_disk, FULL_DISKS)):
        for name in names:
            child = os.fork()
            if child == 0:
                try:
                    run(parts, folder, name)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            ends[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (folder / "ends.json").write_text(json.dumps(ends))


@pytest.fixture(scope="module")
def ended(parts, tmp_path_factory):
    """The folder in which every scenario has ended, one process for all of them so that they import once."""
    folder = tmp_path_factory.mktemp("ended")
    code = "import sys, test_journal; test_journal.run_in_forks(*map(test_journal.Path, sys.argv[1:]))"
    subprocess.run(
        [sys.executable, "-c", code, parts, folder],
        cwd=Path(__file__).parent,
        # threads do not survive a fork
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
        timeout=120,
    )
    return folder


@pytest.fixture(scope="module")
def references(parts, tmp_path_factory):
    """Metrics and records of evaluations that nothing stopped, with a fresh and with a carried optimizer."""
    found = {}
    for reset_optimizer in (True, False):
        trainer = build(parts, tmp_path_factory.mktemp("reference"), reset_optimizer=reset_optimizer)
        found[reset_optimizer] = (trainer.evaluate(), trainer)
    return found


def go_on(parts, folder, references, settings):
    """Start an evaluation again; it must come to the numbers of one that was never stopped."""
    trainer = build(parts, folder, [JournalCallback()], **settings)
    resumed = trainer.evaluate()
    metrics, reference = references[settings.get("reset_optimizer", True)]
    assert without_seconds(trainer) == without_seconds(reference)
    for name in ("bits_per_byte_before", "bits_per_byte", "bits_per_byte_ratio", "byte_perplexity"):
        assert resumed[f"eval_{name}"] == metrics[f"eval_{name}"], "bitwise"
    assert len(lines(folder / "journal-eval.jsonl")) == 5
    files = {"journal-eval.jsonl", *([] if trainer.args.reset_optimizer else ["journal-eval-optimizer-3.safetensors"])}
    assert {path.name for path in folder.iterdir()} == files, "nothing is left lying about"
    return trainer


@pytest.mark.parametrize("name", KILLS)
def test_an_evaluation_that_was_killed_goes_on_to_bitwise_the_same_numbers(parts, ended, references, name):
    assert json.loads((ended / "ends.json").read_text())[name] == -signal.SIGKILL
    _, _, _, settings, done = KILLS[name]
    trainer = go_on(parts, ended / name, references, settings)
    assert len(trainer.retriever.queries) == 4 - done, "what was done is not done again"


STATE = pytest.param("carried, in the state's file")


@pytest.mark.parametrize("name", ["in a line", "at a line", STATE])
def test_a_full_disk_is_a_clear_error_and_loses_no_finished_document(parts, ended, references, name):
    assert json.loads((ended / "ends.json").read_text())[name] == 0
    result = json.loads((ended / f"{name}.json").read_text())
    assert result["is OSError"], result
    for part in (str(ended / name / "journal-eval"), "could not be written", "make room and start again to resume"):
        assert part in result["message"]
    assert result["restored"]
    assert result["optimizer"]
    _, settings = FULL_DISKS[name]
    trainer = go_on(parts, ended / name, references, settings)
    assert len(trainer.retriever.queries) == 2
