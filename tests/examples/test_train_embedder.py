"""`examples/train_embedder.py`: its stream, its loss, a run that is cut off and resumes, and the folder it saves."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import MaskedLMOutput

from tttnn import NeighborRetriever
from tttnn.cli.main import main as tttnn


EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
import train_embedder  # noqa: E402  (the examples are not installed)


MAX_SEQ_LENGTH = 16
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def bert_tokenizer():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=400, min_frequency=1, special_tokens=SPECIAL)
    bpe._tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


@pytest.fixture(scope="module")
def encoders(bert_tokenizer, tmp_path_factory):
    """Folders of a tiny encoder with a masked-LM head, and of one without."""
    config = BertConfig(
        vocab_size=len(bert_tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    folders = {}
    for name, kind in (("with head", BertForMaskedLM), ("without head", BertModel)):
        torch.manual_seed(2)
        folders[name] = str(tmp_path_factory.mktemp("encoder") / name)
        kind(config).save_pretrained(folders[name])
        bert_tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, ""]))
    return str(path)


@pytest.fixture
def arguments(corpus):
    return train_embedder.EmbedderArguments("model", [corpus], [corpus], max_seq_length=MAX_SEQ_LENGTH)


@pytest.fixture
def start(encoders, corpus, monkeypatch, capsys):
    """Run the script in this process; gives what it prints."""

    def run(output_dir, encoder="with head", **options):
        options = {
            "model": encoders[encoder],
            "corpus": corpus,
            "eval_corpus": corpus,
            "max_seq_length": MAX_SEQ_LENGTH,
            "max_steps": 20,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "output_dir": output_dir,
            "use_cpu": True,
            "disable_tqdm": True,
        } | options
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["train_embedder.py", *words])
        capsys.readouterr()
        train_embedder.main()
        return capsys.readouterr().out

    return run


def losses_in(output):
    """The held-out loss before and after."""
    before, after = output.split("held-out documents: ")[1].split(" nats")[0].split(" -> ")
    return float(before), float(after)


def ids_of(stream):
    return [tuple(chunk["input_ids"]) for chunk in stream]


def test_the_chunks_of_a_document_hold_each_of_its_tokens_once(arguments, bert_tokenizer):
    pieces = [chunk["input_ids"] for chunk in train_embedder.chunks(arguments.corpus, arguments, bert_tokenizer)]
    assert all(piece[0] == 1 and piece[-1] == 2 and len(piece) <= MAX_SEQ_LENGTH for piece in pieces)
    inside = [token for piece in pieces for token in piece[1:-1]]
    assert inside == [token for text in TEXTS for token in bert_tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert any(len(piece) == MAX_SEQ_LENGTH for piece in pieces)


def test_a_corpus_without_text_is_an_error(arguments, bert_tokenizer, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="hold no text"):
        list(train_embedder.chunks([str(empty)], arguments, bert_tokenizer))


def test_each_pass_has_every_chunk_once_in_an_order_of_its_own(arguments, bert_tokenizer):
    in_order = ids_of(train_embedder.chunks(arguments.corpus, arguments, bert_tokenizer))
    stream = iter(train_embedder.EndlessChunks(arguments, bert_tokenizer, seed=3))
    first, second = ids_of(islice(stream, len(in_order))), ids_of(islice(stream, len(in_order)))
    assert Counter(first) == Counter(second) == Counter(in_order)
    assert first != second and first != in_order


def test_the_loss_of_a_uniform_guess_is_the_logarithm_of_the_vocabulary():
    outputs = MaskedLMOutput(logits=torch.zeros(2, 3, 50))
    labels = torch.tensor([[7, -100, 8], [-100, -100, 9]])
    assert train_embedder.masked_lm_loss(outputs, labels).item() == pytest.approx(math.log(50))


def test_the_loss_is_pooled_over_the_masked_tokens_of_a_step():
    """Two batches of a gradient accumulation, of 3 masked tokens and of 1: each token weighs a quarter."""
    outputs = MaskedLMOutput(logits=torch.zeros(1, 3, 50))
    several, one = torch.tensor([[7, 8, 9]]), torch.tensor([[-100, -100, 9]])
    of_step = [train_embedder.masked_lm_loss(outputs, labels, torch.tensor(4)).item() for labels in (several, one)]
    assert of_step == pytest.approx([3 / 4 * math.log(50), 1 / 4 * math.log(50)])


def test_a_batch_without_a_masked_token_has_no_loss_and_no_gradient():
    logits = torch.zeros(1, 2, 50, requires_grad=True)
    loss = train_embedder.masked_lm_loss(MaskedLMOutput(logits=logits), torch.full((1, 2), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 2, 50))


def test_training_lowers_the_loss_and_changes_the_encoder(start, encoders, tmp_path):
    before, after = losses_in(start(tmp_path, learning_rate=1e-2))
    assert after < before - 0.5
    initial, trained = (
        AutoModel.from_pretrained(encoders["with head"]),
        AutoModel.from_pretrained(tmp_path / "embedder"),
    )
    for name, tensor in trained.state_dict().items():
        if "pooler" not in name:  # has no part in masked language modeling
            assert not torch.equal(tensor, initial.state_dict()[name]), f"`{name}` was not trained"


def test_evaluations_mask_the_same_tokens(start, tmp_path):
    """At a learning rate of zero, and with other masks drawn in between."""
    before, after = losses_in(start(tmp_path, learning_rate=0.0))
    assert before == after


# 20 steps of 4 chunks are several passes over the corpus: the checkpoint at step 12 lies past the first
@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2}, {"eval_strategy": "steps", "eval_steps": 5}]
)
def test_a_run_cut_off_after_a_checkpoint_and_resumed_equals_an_uninterrupted_one(
    start, monkeypatch, tmp_path, options
):
    options = {"save_steps": 12, **options}
    whole = start(tmp_path / "whole", **options)
    training_step, taken = train_embedder.MaskedLMTrainer.training_step, []

    def cut_off(self, *inputs):
        taken.append(self.state.global_step)
        if self.state.global_step == 14:
            raise KeyboardInterrupt
        return training_step(self, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(train_embedder.MaskedLMTrainer, "training_step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "cut", **options)
    assert not (tmp_path / "cut" / "embedder").exists()

    torch.rand(7)  # another process would stand elsewhere in its random numbers
    taken.clear()
    monkeypatch.setattr(
        train_embedder.MaskedLMTrainer,
        "training_step",
        lambda self, *inputs: taken.append(self.state.global_step) or training_step(self, *inputs),
    )
    resumed = start(tmp_path / "cut", resume_from_checkpoint=True, **options)
    assert taken[0] == 12
    for place in ("checkpoint-20", "embedder"):
        expected, tensors = (load_file(tmp_path / run / place / "model.safetensors") for run in ("whole", "cut"))
        assert expected.keys() == tensors.keys()
        for name, tensor in tensors.items():
            if "pooler" not in name:
                assert torch.equal(tensor, expected[name]), f"`{name}` differs"
    assert losses_in(resumed) == losses_in(whole)


def test_the_saved_folder_embeds_to_the_masked_mean_of_the_trained_encoder(start, bert_tokenizer, tmp_path):
    start(tmp_path)
    embedder = SentenceTransformer(str(tmp_path / "embedder"), device="cpu")
    assert embedder.max_seq_length == MAX_SEQ_LENGTH
    vectors = embedder.encode([TEXTS[2], "The whale"])  # the second is padded
    encoder = BertForMaskedLM.from_pretrained(tmp_path / "checkpoint-20").bert.eval()
    for text, vector in zip([TEXTS[2], "The whale"], vectors, strict=True):
        inputs = bert_tokenizer(text, truncation=True, max_length=MAX_SEQ_LENGTH, return_tensors="pt")
        with torch.no_grad():
            [states] = encoder(**inputs).last_hidden_state
        np.testing.assert_allclose(vector, states.mean(0).numpy(), atol=1e-5)


def test_build_index_takes_the_saved_folder(start, corpus, tmp_path):
    start(tmp_path, max_steps=1)
    assert (
        tttnn(["build-index", corpus, "--embedder", str(tmp_path / "embedder"), "--output", str(tmp_path / "i")]) == 0
    )
    [[nearest]] = NeighborRetriever.from_pretrained(tmp_path / "i").retrieve([TEXTS[3]], top_k=1)
    assert (nearest.text, nearest.distance) == (TEXTS[3], pytest.approx(0, abs=1e-4))


def test_an_encoder_without_a_head_gets_one_and_says_so(start, tmp_path):
    with pytest.warns(UserWarning, match="has no masked-LM head"):
        before, after = losses_in(start(tmp_path, encoder="without head", learning_rate=1e-2))
    assert after < before


def test_the_output_matrix_of_a_new_head_is_the_input_embeddings(arguments, encoders):
    arguments.model = encoders["without head"]
    with pytest.warns(UserWarning, match="newly initialized"):
        model, _ = train_embedder.load(arguments)
    trained = AutoModel.from_pretrained(encoders["without head"]).get_input_embeddings().weight
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_output_embeddings().weight, trained)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"max_seq_length": 65}, "reads up to 64 tokens"),
        ({"max_seq_length": 2}, "2 special ones"),
        ({"max_steps": 0}, "at least 1 step"),
        ({"dataloader_num_workers": 2}, "at most 1 worker"),
    ],
)
def test_a_value_that_cannot_work_is_an_error(start, tmp_path, option, match):
    with pytest.raises(ValueError, match=match):
        start(tmp_path, **option)


def test_the_commands_of_the_page_run_one_after_another(encoders, monkeypatch, tmp_path):
    """With a tiny encoder, few steps and a small corpus; the second one finds the checkpoint of the first."""
    page = (EXAMPLES.parent / "docs" / "how-to" / "train-an-embedder.md").read_text()
    commands = [block.split("\n```")[0].replace("\\\n", " ") for block in page.split("```text\n")[1:]]
    assert [command.split()[0] for command in commands] == ["python", "python", "tttnn"]
    (tmp_path / "my_corpus").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "my_corpus" / f"{number}.txt").write_text(text)
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": TEXTS[0]}))
    monkeypatch.chdir(tmp_path)
    for command in commands[:2]:
        words = [encoders["with head"] if word == "FacebookAI/roberta-base" else word for word in command.split()]
        small = ["--max_steps", "2", "--max_seq_length", "16", "--use_cpu", "True"]
        monkeypatch.setattr(sys, "argv", words[1:] + small)
        train_embedder.main()
    assert tttnn(commands[2].split()[1:]) == 0


@pytest.mark.slow
def test_two_processes_share_the_stream(encoders, corpus, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", EXAMPLES / "train_embedder.py"]
        + ["--model", encoders["with head"], "--corpus", corpus, "--eval_corpus", corpus, "--max_steps", "3"]
        + ["--max_seq_length", "16", "--use_cpu", "True", "--output_dir", tmp_path / "out"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    before, after = losses_in(result.stdout)
    assert after < before
