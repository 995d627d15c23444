"""Experts: parts of an index, an adapter of each, their exact merge, and what is refused."""

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TEXTS
from peft import PeftModel
from safetensors.torch import load_file

from tttnn import NeighborRetriever, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.methods import METHODS, ExpertArguments, ExpertTrainingArguments, make_trainable, train_experts
from tttnn.methods.expert_files import adapter_parameters, digest_of_weights


SIZES = {"num_experts": 3, "lora_rank": 2, "max_length": 16, "batch_size": 2, "use_cpu": True}


@pytest.fixture
def experts(model, tokenizer, retriever, tmp_path):
    return train_experts(model, tokenizer, retriever.index, tmp_path / "experts", ExpertTrainingArguments(**SIZES))


def trainer_of(name, folder, model, tokenizer, retriever, tmp_path, number=2, **options):
    method = METHODS[name](experts=ExpertArguments(str(folder), num_experts=number))
    args = TestTimeTrainingArguments(
        **{"output_dir": str(tmp_path / "run"), "num_neighbors": 3, "max_length": 32, "use_cpu": True, **options}
    )
    return TestTimeTrainer(
        model=make_trainable(model, method.trainable),
        args=args,
        retriever=retriever,
        processing_class=tokenizer,
        method=method,
    )


def test_training_leaves_the_model_as_it_was(model, tokenizer, retriever, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_experts(model, tokenizer, retriever.index, tmp_path / "experts", ExpertTrainingArguments(**SIZES))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_merge_is_the_weighted_sum_of_the_changes(experts, model, tokenizer, retriever, tmp_path):
    """Expected from the single adapters' files: alpha / rank is 2, and a change is 2 B A."""
    trainer = trainer_of("experts", experts, model, tokenizer, retriever, tmp_path)
    trainer.method.files.merge_into(trainer.model, [2, 0], [0.75, 0.25])
    values = dict(adapter_parameters(trainer.model))
    place = "base_model.model.transformer.h.0.attn.c_attn"
    merged = values[f"{place}.lora_B.default.weight"] @ values[f"{place}.lora_A.default.weight"]
    changes = []
    for number in (2, 0):
        tensors = load_file(experts / f"expert-{number:05d}" / "adapter_model.safetensors")
        changes.append(tensors[f"{place}.lora_B.weight"] @ tensors[f"{place}.lora_A.weight"])
    assert changes[0].abs().max() > 0
    torch.testing.assert_close(merged, 0.75 * changes[0] + 0.25 * changes[1])
    layer = trainer.model.get_submodule(place)
    assert layer.scaling["default"] == 2


def test_one_expert_scores_as_peft_does(experts, model, tokenizer, retriever, tmp_path):
    trainer = trainer_of("experts", experts, model, tokenizer, retriever, tmp_path, number=1, mix="none")
    trainer.evaluate([TEXTS[0]])
    (record,) = trainer.records
    chosen = trainer.method.choose(_episode(trainer))[0][0]
    base = trainer.model.unload()
    adapted = PeftModel.from_pretrained(base, experts / f"expert-{chosen:05d}").eval()
    token_ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    half = len(token_ids) // 2
    with torch.no_grad():
        logits = adapted(torch.tensor([[0, *token_ids]])).logits[0, :-1].double()
    nll = -logits.log_softmax(-1)[range(len(token_ids)), token_ids][half:].sum().item()
    assert record.nll[-1] == pytest.approx(nll, rel=1e-5)
    assert record.nll[-1] != pytest.approx(record.nll[0], rel=1e-6)


def _episode(trainer, text=TEXTS[0]):
    from tttnn import Document
    from tttnn.adaptation import Episode

    return Episode(trainer, Document("0", text), 0)


def test_the_nearest_experts_are_chosen_and_weighed_by_distance(experts, model, tokenizer, retriever, tmp_path):
    trainer = trainer_of("experts", experts, model, tokenizer, retriever, tmp_path)
    episode = _episode(trainer)
    chosen, weights = trainer.method.choose(episode)
    query = retriever.embedder.encode_query([episode.query])[0]
    distances = np.square(trainer.method.files.centers - query).sum(axis=1)
    assert chosen == np.argsort(distances)[:2].tolist()
    assert sum(weights) == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(
        np.exp((distances[chosen[0]] - distances[chosen[1]]) / 0.1), rel=1e-4
    )


@pytest.mark.parametrize("name", ["experts", "experts+ttt"])
def test_the_adapter_is_as_before_after_each_document(name, experts, model, tokenizer, retriever, tmp_path):
    trainer = trainer_of(name, experts, model, tokenizer, retriever, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.evaluate(TEXTS[:2])
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    first = [record.nll for record in trainer.records]
    trainer.evaluate(TEXTS[1:2])
    assert trainer.records[0].nll == pytest.approx(first[1])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there `bf16` never needed `use_cpu`")
def test_bf16_needs_no_word_that_there_is_only_a_cpu(model, tokenizer, retriever, tmp_path):
    sizes = {**SIZES, "bf16": True, "use_cpu": False, "max_rows": 2}
    folder = train_experts(model, tokenizer, retriever.index, tmp_path / "bf16", ExpertTrainingArguments(**sizes))
    tensors = load_file(folder / "expert-00002" / "adapter_model.safetensors")
    assert any(value.any() for name, value in tensors.items() if ".lora_B." in name)


def test_adapt_merges_them_too(experts, model, tokenizer, retriever, tmp_path):
    trainer = trainer_of("experts", experts, model, tokenizer, retriever, tmp_path)
    with trainer.adapt(TEXTS[0]) as adapted:
        assert any(value.any() for name, value in adapter_parameters(adapted) if ".lora_B." in name)
    assert all(not value.any() for name, value in adapter_parameters(trainer.model) if ".lora_B." in name)


def test_an_interrupted_call_goes_on(model, tokenizer, retriever, tmp_path, monkeypatch):
    trained = []
    module = sys.modules["tttnn.methods.expert_training"]

    original = module._train

    def breaking(*args):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args[4])
        original(*args)

    monkeypatch.setattr(module, "_train", breaking)
    with pytest.raises(KeyboardInterrupt):
        train_experts(model, tokenizer, retriever.index, tmp_path / "cut", ExpertTrainingArguments(**SIZES))
    with pytest.raises(ValueError, match=r"'experts.json' is missing. `tttnn train-experts INDEX --model MODEL"):
        METHODS["experts"](experts=ExpertArguments(str(tmp_path / "cut")))
    monkeypatch.setattr(module, "_train", lambda *args: (trained.append(args[4]), original(*args)))
    train_experts(model, tokenizer, retriever.index, tmp_path / "cut", ExpertTrainingArguments(**SIZES))
    assert trained == [0, 1, 2]
    monkeypatch.setattr(module, "_train", original)
    train_experts(model, tokenizer, retriever.index, tmp_path / "whole", ExpertTrainingArguments(**SIZES))
    cut, whole = ((tmp_path / name / "experts.json").read_text() for name in ("cut", "whole"))
    assert json.loads(cut)["files"] == json.loads(whole)["files"]


def test_experts_of_another_model_are_refused(experts, tiny_models, tokenizer, retriever, tmp_path):
    with pytest.raises(ValueError, match="were trained with the model"):
        trainer_of("experts", experts, copy.deepcopy(tiny_models["llama"]), tokenizer, retriever, tmp_path)


def test_experts_of_another_index_are_refused(experts, model, tokenizer, retriever, embedder, tmp_path):
    from tttnn import NeighborRetriever

    other = NeighborRetriever.from_documents(TEXTS[:5], embedder)
    with pytest.raises(ValueError, match="were trained on the index"):
        trainer_of("experts", experts, model, tokenizer, other, tmp_path)


def test_a_changed_file_is_refused(experts):
    path = experts / "expert-00001" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="is not the file that was written"):
        METHODS["experts"](experts=ExpertArguments(str(experts)))


@pytest.mark.parametrize("damage", ["a missing adapter", "no JSON", "another kind of JSON"])
def test_training_again_into_a_damaged_folder_says_what_to_do(experts, model, tokenizer, retriever, damage):
    if damage == "a missing adapter":
        (experts / "expert-00001" / "adapter_model.safetensors").unlink()
    else:
        (experts / "experts.json").write_text("{" if damage == "no JSON" else "[]")
    with pytest.raises(ValueError, match="Remove the folder, and run `tttnn train-experts` again"):
        train_experts(model, tokenizer, retriever.index, experts, ExpertTrainingArguments(**SIZES))


def test_a_call_that_was_killed_before_its_plan_goes_on(experts, model, tokenizer, retriever, tmp_path):
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "centers.safetensors").write_bytes((experts / "centers.safetensors").read_bytes())
    train_experts(model, tokenizer, retriever.index, tmp_path / "cut", ExpertTrainingArguments(**SIZES))
    assert (tmp_path / "cut" / "experts.json").is_file()


def test_a_part_of_blank_rows_is_refused_before_the_work(model, tokenizer, embedder, tmp_path):
    retriever = NeighborRetriever.from_documents([*TEXTS[:4], " ", "", "  "], embedder)
    arguments = ExpertTrainingArguments(**{**SIZES, "num_experts": 5})
    with pytest.raises(ValueError, match=r"Part \d of the index holds no text of two tokens"):
        train_experts(model, tokenizer, retriever.index, tmp_path / "x", arguments)
    assert not list((tmp_path / "x").glob("expert-*"))
    train_experts(model, tokenizer, retriever.index, tmp_path / "x", replace(arguments, num_experts=1))


def test_longer_chunks_than_the_model_reads_are_refused(model, tokenizer, retriever, tmp_path):
    with pytest.raises(ValueError, match="`max_length` is 65, and the model reads 64 tokens at once"):
        arguments = ExpertTrainingArguments(**{**SIZES, "max_length": 65})
        train_experts(model, tokenizer, retriever.index, tmp_path / "x", arguments)


@pytest.mark.parametrize("options", [{"exclude": "id"}, {"drop_near_copies": True}, {"max_distance": 1.0}])
def test_rules_that_experts_would_break_are_refused(options, experts, model, tokenizer, retriever, tmp_path):
    with pytest.raises(ValueError, match="experts were trained on all parts of the index"):
        trainer_of("experts", experts, model, tokenizer, retriever, tmp_path, **options)


def test_another_setting_needs_another_folder(experts, model, tokenizer, retriever):
    with pytest.raises(ValueError, match="holds experts with `lora_rank` 2, and this is 4"):
        train_experts(model, tokenizer, retriever.index, experts, ExpertTrainingArguments(**{**SIZES, "lora_rank": 4}))


def test_more_experts_than_rows_are_refused(model, tokenizer, retriever, tmp_path):
    with pytest.raises(ValueError, match="The index has 10 rows"):
        train_experts(
            model, tokenizer, retriever.index, tmp_path / "x", ExpertTrainingArguments(**{**SIZES, "num_experts": 11})
        )


def test_weights_have_the_same_digest_in_bfloat16(model):
    before = digest_of_weights(model)
    assert digest_of_weights(model.to(torch.bfloat16)) == before
