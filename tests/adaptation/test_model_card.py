"""What the card of a saved model says."""

import pytest
from conftest import TEXTS
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model


METHOD = "[test-time training on nearest neighbors](https://huggingface.co/papers/2305.18466)"


@pytest.fixture
def make(make_trainer, model):
    """Make a trainer of a model that was loaded under this name."""

    def make(name="gpt2", **overrides):
        model.config._name_or_path = str(name)
        return make_trainer(**overrides)

    return make


@pytest.fixture
def card_of(tmp_path):
    def card_of(trainer, **arguments):
        (tmp_path / "run").mkdir(exist_ok=True)
        trainer.create_model_card(**arguments)
        card = ModelCard.load(tmp_path / "run" / "README.md")
        assert "from scratch" not in card.text and "unknown dataset" not in card.text
        return card

    return card_of


def test_an_adapted_model_is_told_with_its_base_model_and_its_neighbors(make, card_of):
    trainer = make(num_neighbors=3)
    with trainer.adapt(TEXTS[0]):
        card = card_of(trainer, model_name="adapted")
    assert "# adapted\n" in card.text
    assert (
        "This model is [gpt2](https://huggingface.co/gpt2), adapted at test time to one text by training on 3 of its "
        f"nearest neighbors ({METHOD})." in card.text
    )
    assert "- learning_rate: 0.001" in card.text
    assert (card.data.base_model, card.data.library_name) == ("gpt2", "transformers")


def test_a_model_is_unchanged_after_it_was_adapted_or_evaluated(make, card_of):
    trainer = make()
    with trainer.adapt(TEXTS[0]):
        pass
    trainer.evaluate(TEXTS[:1])
    text = card_of(trainer).text
    assert f"gpt2), with its weights unchanged: {METHOD} restores them after each document." in text
    assert "## Settings" not in text


def test_a_model_is_unchanged_after_an_error_inside_of_adapt(make, card_of):
    trainer = make()
    with pytest.raises(ArithmeticError), trainer.adapt(TEXTS[0]):
        raise ArithmeticError
    assert "with its weights unchanged" in card_of(trainer).text


def test_a_model_is_fine_tuned_after_train_and_not_on_the_test_documents(make, card_of, tokenizer):
    trainer = make(eval_dataset=Dataset.from_dict({"text": TEXTS[:1]}), num_train_epochs=2)
    row = tokenizer(TEXTS[0])["input_ids"]
    trainer.train_dataset = [{"input_ids": row, "labels": row}]
    trainer.train()
    card = card_of(trainer)
    assert "gpt2), fine-tuned on a data set without a name." in card.text
    assert "- num_epochs: 2" in card.text
    assert card.data.datasets is None
    named = card_of(trainer, dataset_tags="user/rows")
    assert "gpt2), fine-tuned on user/rows." in named.text
    assert named.data.datasets == "user/rows"
    with trainer.adapt(TEXTS[0]):
        assert "fine-tuned on user/rows and adapted at test time" in card_of(trainer, dataset="user/rows").text


def test_a_local_base_model_is_named_by_its_folder_alone(make, card_of, tmp_path):
    (tmp_path / "private" / "my-model").mkdir(parents=True)
    card = card_of(make(tmp_path / "private" / "my-model"))
    assert "This model is `my-model`, " in card.text
    assert "private" not in card.content
    assert card.data.base_model is None


def test_a_model_without_a_name_is_told_by_its_class(make, card_of):
    assert "This model is a GPT2LMHeadModel without a name, " in card_of(make("")).text


def test_metadata_that_is_passed_stands_in_the_card(make, card_of):
    data = card_of(make(""), language="en", license="mit", tags="code", finetuned_from="user/base").data
    assert (data.language, data.license, data.base_model) == ("en", "mit", "user/base")
    assert data.tags == ["code", "test-time-training"]


def test_the_card_of_adapters_belongs_to_peft(make_trainer, model, card_of):
    model.config._name_or_path = "gpt2"
    lora = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=True))
    data = card_of(make_trainer(model=lora)).data
    assert (data.library_name, data.base_model) == ("peft", "gpt2")


def test_push_to_hub_uploads_this_card(make, monkeypatch, tmp_path):
    uploads = []

    class Api:
        def upload_folder(self, folder_path, **kwargs):
            uploads.append(ModelCard.load(f"{folder_path}/README.md").text)

    monkeypatch.setattr("transformers.trainer.hf_api", Api)
    trainer = make()
    trainer.hub_model_id = "user/adapted"
    with trainer.adapt(TEXTS[0]):
        trainer.push_to_hub()
    assert "adapted at test time to one text" in uploads[0]
