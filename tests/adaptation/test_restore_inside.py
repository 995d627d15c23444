"""What a user may do to the model inside of a context, and two contexts at once: the model leaves as it came."""

import asyncio
import copy
import json
import threading

import pytest
import torch
from conftest import CONFIGS
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tttnn import JournalCallback, TestTimeCallback, restored


# what a user does to the model inside


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda model: model.to(torch.bfloat16), id="bfloat16"),
        pytest.param(lambda model: model.half(), id="half"),
        pytest.param(lambda model: model.to("meta"), id="meta"),
        pytest.param(lambda model: model.resize_token_embeddings(model.config.vocab_size + 7), id="resized"),
        pytest.param(lambda model: setattr(model.config, "vocab_size", 3), id="config"),
    ],
)
def test_what_is_done_to_the_model_inside_adapt_is_undone(trainer, documents, change):
    model = trainer.model
    before, places = copy.deepcopy(model.state_dict()), [(name, id(module)) for name, module in model.named_modules()]
    config, dtype = copy.deepcopy(model.config.to_dict()), model.dtype
    trainer.evaluate(documents)
    scores = [record.nll for record in trainer.records]
    with trainer.adapt(documents[0]):
        change(model)
    assert [(name, id(module)) for name, module in model.named_modules()] == places
    assert (model.config.to_dict(), model.dtype) == (config, dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"`{name}` was not restored"
    trainer.evaluate(documents)
    assert [record.nll for record in trainer.records] == scores


def test_hidden_states_are_given_again_after_a_context_in_which_they_were_asked_for(model):
    tokens, num_hooks = torch.tensor([[1, 2, 3]]), []
    for _ in range(3):
        with restored(model), torch.no_grad():
            assert len(model(tokens, output_hidden_states=True).hidden_states) > 1
        num_hooks.append(sum(len(module._forward_hooks) for module in model.modules()))
    assert num_hooks[0] == num_hooks[1] == num_hooks[2]


def test_the_length_of_a_rotary_cache_goes_back_with_its_buffer(tokenizer, retriever, tmp_path):
    config = CONFIGS["llama"](len(tokenizer))
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rotary = next(module for module in model.modules() if hasattr(module, "max_seq_len_cached"))
    before = rotary.max_seq_len_cached, rotary.inv_freq.clone()
    with restored(model), torch.no_grad():
        model(torch.zeros(1, 200, dtype=torch.long))
        assert rotary.max_seq_len_cached == 200
        assert not torch.equal(rotary.inv_freq, before[1])
    assert rotary.max_seq_len_cached == before[0]
    assert torch.equal(rotary.inv_freq, before[1])


def with_lora(model):
    torch.manual_seed(3)
    options = {"target_modules": "all-linear", "fan_in_fan_out": True, "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **options))


def test_a_merged_adapter_is_unmerged_and_what_rounding_left_is_an_error(model):
    adapted = with_lora(model)
    with pytest.raises(RuntimeError, match="the model is no longer the same"), restored(adapted):
        adapted.merge_adapter()
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora" in name:
                    parameter.mul_(1.001)  # steps on the adapter after merging
    layers = [module for module in adapted.modules() if hasattr(module, "merged")]
    assert not any(layer.merged for layer in layers)


def test_an_adapter_added_inside_is_taken_out(model):
    before = [(name, id(module)) for name, module in model.named_modules()]
    weights = copy.deepcopy(model.state_dict())
    with restored(model):
        with_lora(model)
        assert [name for name, _ in model.named_modules()] != [name for name, _ in before]
    assert [(name, id(module)) for name, module in model.named_modules()] == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_activation_checkpointing_leaves_no_hook(make_trainer, model, documents):
    trainer = make_trainer(activation_checkpointing=True)
    counts = []
    for _ in range(3):
        trainer.evaluate(documents[:1])
        counts.append(sum(len(module._forward_hooks) for module in model.modules()))
    assert counts == [0, 0, 0]


# two at once


def test_of_six_threads_one_adapts_and_five_are_refused(trainer, documents):
    before, results = copy.deepcopy(trainer.model.state_dict()), []
    adapted, end = threading.Event(), threading.Event()

    def first():
        with trainer.adapt(documents[0]):
            results.append("adapted")
            adapted.set()
            end.wait(60)

    holder = threading.Thread(target=first)
    holder.start()
    adapted.wait(60)
    weights = copy.deepcopy(trainer.model.state_dict())

    def other():
        try:
            with trainer.adapt(documents[1]):
                results.append("adapted")
        except RuntimeError as error:
            results.append(str(error))

    others = [threading.Thread(target=other) for _ in range(5)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.model.state_dict().items())
    end.set()
    holder.join()
    assert results[0] == "adapted"
    assert len(results) == 6
    assert all("by another thread or task" in message for message in results[1:])
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_second_trainer_on_the_same_model_is_refused_from_another_task(make_trainer, documents):
    first, second = make_trainer(), make_trainer()
    before = copy.deepcopy(first.model.state_dict())

    async def hold(trainer, seconds):
        with trainer.adapt(documents[0]):
            await asyncio.sleep(seconds)

    async def both():
        return await asyncio.gather(hold(first, 0.01), hold(second, 0), return_exceptions=True)

    ended, refused = asyncio.run(both())
    assert ended is None
    assert "by another thread or task" in str(refused)
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.model.state_dict().items())


def test_contexts_that_overlap_restore_the_model_and_are_an_error(make_trainer, documents):
    trainer = make_trainer()
    before = copy.deepcopy(trainer.model.state_dict())
    outer, inner = trainer.adapt(documents[0]), trainer.adapt(documents[1])
    outer.__enter__()
    inner.__enter__()
    for context in (outer, inner):
        with pytest.raises(RuntimeError, match="Two contexts that adapt one model overlap"):
            context.__exit__(None, None, None)
        assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    trainer.evaluate(documents[:1])


def test_a_refused_adapt_leaves_the_running_episode_alone(make_trainer, documents):
    class Nested(TestTimeCallback):
        def on_document_end(self, args, state, control, record, model, **kwargs):
            weights = copy.deepcopy(model.state_dict())
            with pytest.raises(RuntimeError, match="An episode is running"), trainer.adapt("another text"):
                pass
            self.kept = all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())

    callback = Nested()
    trainer = make_trainer(callbacks=[callback])
    trainer.evaluate(documents[:1])
    assert callback.kept


# the optimizer


def test_an_optimizer_that_was_passed_keeps_its_state(make_trainer, model, documents):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    trainer = make_trainer(optimizers=(optimizer, None))
    trainer.evaluate(documents)
    assert trainer.records[0].nll[0] != trainer.records[0].nll[1]
    after = optimizer.state_dict()["state"]
    assert after.keys() == before.keys()
    for place, values in before.items():
        assert all(torch.equal(value, after[place][name]) for name, value in values.items())


def rate_in(folder):
    return json.loads((folder / "journal-eval.jsonl").read_text().splitlines()[0])["settings"]["learning_rate"]


def test_a_changed_learning_rate_is_used_and_recorded(make_trainer, documents, tmp_path):
    trainer = make_trainer(learning_rate=1e-3)
    trainer.evaluate(documents)
    trainer.args.learning_rate = 1e-2
    trainer.add_callback(JournalCallback(tmp_path))
    trainer.evaluate(documents)
    expected = make_trainer(learning_rate=1e-2)
    expected.evaluate(documents)
    assert [record.nll for record in trainer.records] == [record.nll for record in expected.records]
    assert rate_in(tmp_path) == 1e-2


def test_the_journal_records_the_rate_of_an_optimizer_that_was_passed(make_trainer, model, documents, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    make_trainer(optimizers=(optimizer, None), callbacks=[JournalCallback(tmp_path)]).evaluate(documents)
    assert rate_in(tmp_path) == 0.125


def test_parameters_that_are_frozen_later_are_not_trained(make_trainer, documents):
    trainer = make_trainer()
    trainer.evaluate(documents)
    for parameter in trainer.model.parameters():
        parameter.requires_grad_(False)
    trainer.model.lm_head.weight.requires_grad_(True)
    with trainer.adapt(documents[0]):
        names = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert names == {id(trainer.model.lm_head.weight)}
