"""The file of `tttnn tune` as a preset: what is read, what is refused, and where it may be used."""

import math

import pytest
from conftest import TEXTS
from huggingface_hub import ModelCard

from tttnn import TestTimeTrainingArguments
from tttnn.adaptation import CurveRow, Tuning, read_tuning
from tttnn.files import write_json


PREFIX = CurveRow("prefix", {}, 1.0, 0.0, [0.0, 0.0], 100.0, 0.0, 0.1)
TTT = CurveRow("ttt", {"num_neighbors": 3, "learning_rate": 1e-3}, 0.9, -0.1, [-0.2, math.nan], 100.0, 48.0, 0.5)


def make_tuning(model=None, index=None):
    settings = {"num_neighbors": 3, "learning_rate": 1e-3}
    return Tuning("tuned.json", model, index, 24, 42, {"torch": "2.0"}, settings, [PREFIX, TTT])


@pytest.fixture
def write(tmp_path):
    """Write a file of a tuning, with other values for some of its fields; gives its path."""

    def write(model=None, index=None, **changes):
        path = tmp_path / "tuned.json"
        write_json(path, {**make_tuning(model, index).to_json(), **changes})
        return str(path)

    return write


def test_settings_of_a_file_are_a_preset_and_others_override_them(write):
    args = TestTimeTrainingArguments.from_preset(write(), num_neighbors=2, use_cpu=True)
    assert (args.num_neighbors, args.learning_rate) == (2, 1e-3)
    assert args.tuning.name == "tuned.json"


def test_a_file_is_read_as_it_was_written(write):
    tuning = read_tuning(write(model="gpt2", index="abc"))
    assert (tuning.model, tuning.index, tuning.curve[0]) == ("gpt2", "abc", PREFIX)
    assert tuning.curve[1].interval == [-0.2, None]  # JSON has no NaN


def test_published_settings_are_of_no_file():
    assert TestTimeTrainingArguments.from_preset("tttlm", use_cpu=True).tuning is None


ROW = make_tuning().to_json()["curve"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tttnn_tuning": 2}, "has the format version 2, and this version of tttnn reads 1"),
        ({"extra": 1}, "has the unknown field `extra`"),
        ({"settings": {"num_neighbors": 3, "rate": 1}}, "has the unknown setting 'rate'"),
        ({"settings": {"num_neighbors": 0}}, "has a setting that cannot be: `num_neighbors` is 0"),
        ({"settings": {"learning_rate": "high"}}, "has a setting that cannot be"),
        ({"settings": 3}, "its settings are 3"),
        ({"curve": 3}, "`curve` is 3"),
        ({"model": 5}, "`model` is 5"),
        ({"index": ["a"]}, "`index` is"),
        ({"num_documents": "24"}, "`num_documents` is '24'"),
        ({"settings": {"weight_decay": math.nan}}, "`weight_decay` is nan"),
        ({"curve": [{**ROW, "method": ["prefix"]}]}, "`method` is"),
        ({"curve": [{**ROW, "options": 3}]}, "`options` is 3"),
        ({"curve": ["row"]}, "'row' is no set of fields"),
        ({"curve": [{**ROW, "extra": 1}]}, "has the unknown field `extra`"),
        ({"curve": [{name: value for name, value in ROW.items() if name != "method"}]}, "has no field `method`"),
        ({"curve": [{**ROW, "tokens_read": -1}]}, "`tokens_read` is -1 in a row"),
        ({"curve": [{**ROW, "bits_per_byte": None}]}, "`bits_per_byte` is None in a row"),
        ({"curve": []}, "has no row of the method prefix"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(write, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        TestTimeTrainingArguments.from_preset(write(**changes))
    assert "tuned.json" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is no JSON"), ("[]", "is no file of `tttnn tune`"), ("{}", "is no file of")]
)
def test_another_file_is_refused(tmp_path, content, message):
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        TestTimeTrainingArguments.from_preset(str(path))


def test_a_file_that_is_missing_is_told_with_the_command_that_writes_it():
    with pytest.raises(ValueError, match="There is no file 'missing.json'. `tttnn tune MODEL INDEX` writes one."):
        TestTimeTrainingArguments.from_preset("missing.json")


def test_another_model_or_index_is_refused_by_the_trainer(write, make_trainer, model, retriever):
    model.config._name_or_path = "gpt2"

    def make(**measured_with):
        return make_trainer(args=TestTimeTrainingArguments.from_preset(write(**measured_with), use_cpu=True))

    make(model="gpt2", index=retriever.index.digest)
    make()  # of neither is it known
    with pytest.raises(ValueError, match="measured with the model 'gpt2-large', and the model is 'gpt2'"):
        make(model="gpt2-large")
    with pytest.raises(ValueError, match="measured on the index 0123, and the index is"):
        make(index="0123")


def test_a_folder_is_one_model_however_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    make_tuning(model=str(tmp_path / "model")).check("./model", None)
    with pytest.raises(ValueError, match="measured with the model"):
        make_tuning(model=str(tmp_path / "model")).check(".", None)


def test_the_card_names_the_file_that_settings_are_from(write, make_trainer, tmp_path):
    args = TestTimeTrainingArguments.from_preset(write(), output_dir=str(tmp_path), use_cpu=True, max_length=32)
    trainer = make_trainer(args=args)
    with trainer.adapt(TEXTS[0]):
        trainer.create_model_card(model_name="adapted")
    text = ModelCard.load(tmp_path / "README.md").text
    assert "- preset: tuned.json, chosen on 24 documents of the index by `tttnn tune`" in text
    assert "- learning_rate: 0.001" in text
