"""
`TestTimeTrainer` against the plain loop of `reference.py`, which knows nothing of it.

Every comparison asks three things: the two agree, training moved the scores by far more than the tolerance, and so
does the setting that the test is about (`unlike`), so that a trainer that ignores it cannot pass.
"""

import copy

import pytest
import torch
from conftest import CONFIGS, TEXTS
from peft import LoraConfig, get_peft_model
from reference import Settings, adapted_nll, split, tokenize
from transformers import AutoModelForCausalLM

from tttnn import Neighbor, TestTimeTrainer, TestTimeTrainingArguments


TOLERANCE = 1e-5  # relative, on the nll
MAX_LENGTH = 24
LEARNING_RATE = 1e-3

CODE = (
    "def parse_args(args):\n    parser = argparse.ArgumentParser()\n    parser.add_argument(args)\n    return parser\n"
)
WHALE = "The old captain saw the white whale at the break of day, and the whole crew was at the boats."
PROOF = "Then x is a rational number; let p and q be such that x squared equals p over q. Größe!"

ONE_TOKEN = "a"
LONG = " ".join(TEXTS[3:5])
EPISODES = [
    (CODE, [TEXTS[0], TEXTS[5], TEXTS[1]]),
    (WHALE, [TEXTS[3], TEXTS[2], TEXTS[9], TEXTS[4]]),
    (PROOF, [TEXTS[7], TEXTS[6]]),
]


class GivenNeighbors:
    """A retriever that was told the answers; it notes the queries, and seeds dropout as `adapted_nll` is told to."""

    def __init__(self, tokenizer, episodes, query):
        self.answers = {split(tokenizer, document, query)[0]: texts for document, texts in episodes}
        self.queries = []

    def retrieve(self, texts, top_k):
        self.queries += texts
        torch.manual_seed(7)
        return [
            [Neighbor(row, text, float(row), {}) for row, text in enumerate(self.answers[query][:top_k])]
            for query in texts
        ]


def seed_dropout():
    torch.manual_seed(7)


def plain_model(name, tokenizer, seed=0):
    """A tiny model whose configuration has no dropout."""
    config = CONFIGS[name](len(tokenizer))
    for rate in [attribute for attribute, value in vars(config).items() if "drop" in attribute and value]:
        setattr(config, rate, 0.0)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def curves(tokenizer, tmp_path):
    """Compare the trainer's curves with those of the loop, and give them."""

    def compare(model, plain, episodes, settings, unlike=None, preset=None, **overrides):
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "num_neighbors": 4,
            "max_length": settings.max_length,
            "learning_rate": settings.learning_rate,
            "query": settings.query,
            "score_every_neighbor": True,
            "prompt": "none",  # the rolling windows of the loop
            "use_cpu": True,
            "disable_tqdm": True,
            **overrides,
        }
        make = TestTimeTrainingArguments if preset is None else TestTimeTrainingArguments.from_preset
        args = make(**arguments) if preset is None else make(preset, **arguments)
        retriever = GivenNeighbors(tokenizer, episodes, settings.query)
        trainer = TestTimeTrainer(model, args, retriever, processing_class=tokenizer)
        trainer.evaluate([document for document, _ in episodes])
        assert retriever.queries == list(retriever.answers)

        before = copy.deepcopy(plain.state_dict())
        expected = adapted_nll(plain, tokenizer, episodes, settings, seed_dropout)
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, before[name])
        found = [record.nll for record in trainer.records]
        assert [len(curve) for curve in found] == [len(curve) for curve in expected]
        for curve, expected_curve in zip(found, expected, strict=True):
            assert curve == pytest.approx(expected_curve, rel=TOLERANCE)
            moved = max(abs(score / curve[0] - 1) for score in curve)
            assert moved > 30 * TOLERANCE, "training did not move the score"
        if unlike is not None:
            other = adapted_nll(plain, tokenizer, episodes, unlike, seed_dropout)
            pairs = [pair for curves in zip(found, other, strict=True) for pair in zip(*curves, strict=True)]
            difference = max(abs(score / another - 1) for score, another in pairs)
            assert difference > 10 * TOLERANCE, "the setting changes nothing here, so the comparison shows nothing"
        return trainer

    return compare


def test_the_defaults_agree_for_each_architecture_with_its_dropout_switched_off(curves, tokenizer, tiny_models):
    settings = Settings(MAX_LENGTH, LEARNING_RATE, query="prefix")
    unlike = Settings(MAX_LENGTH, LEARNING_RATE, query="prefix", carry_optimizer=True)
    for name, model in tiny_models.items():
        curves(copy.deepcopy(model), plain_model(name, tokenizer), EPISODES, settings, unlike)


def test_a_score_before_and_after_is_the_two_ends_of_the_curve(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, LEARNING_RATE, query="prefix", score_every_neighbor=False)
    trainer = curves(model, plain_model("gpt2", tokenizer), EPISODES, settings, score_every_neighbor=False)
    assert [len(record.nll) for record in trainer.records] == [2, 2, 2]


def test_the_unfused_optimizer_agrees(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, LEARNING_RATE)
    curves(model, plain_model("gpt2", tokenizer), EPISODES, settings, optim="adamw_torch")


def test_the_default_learning_rate_agrees(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, 2e-5)
    trainer = curves(model, plain_model("gpt2", tokenizer), [(PROOF, TEXTS * 2)], settings, num_neighbors=20)
    assert trainer.args.learning_rate == TestTimeTrainingArguments().learning_rate == 2e-5


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_preset_without_dropout_agrees_over_documents_in_sequence(curves, tokenizer, name):
    plain = plain_model(name, tokenizer)
    episodes = [(CODE, [TEXTS[0], LONG]), (WHALE, [LONG, TEXTS[2]])]
    settings = Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=None, carry_optimizer=True)
    unlike = Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=None)
    curves(copy.deepcopy(plain), plain, episodes, settings, unlike, preset="tttlm", num_neighbors=50, query="document")


def test_the_preset_trains_with_the_dropout_of_the_model(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=None, carry_optimizer=True)
    trainer = curves(model, copy.deepcopy(model), EPISODES, settings, preset="tttlm")
    dry = adapted_nll(plain_model("gpt2", tokenizer), tokenizer, EPISODES, settings)
    wet = [record.nll for record in trainer.records]
    assert max(abs(a[-1] / b[-1] - 1) for a, b in zip(wet, dry, strict=True)) > 10 * TOLERANCE


def test_a_carried_optimizer_agrees_over_two_evaluations(curves, tokenizer, model):
    """The state is carried over documents, not over calls of `evaluate`: each begins with a fresh optimizer."""
    settings = Settings(MAX_LENGTH, LEARNING_RATE, carry_optimizer=True)
    unlike = Settings(MAX_LENGTH, LEARNING_RATE)
    trainer = curves(
        model, plain_model("gpt2", tokenizer), EPISODES, settings, unlike, reset_optimizer=False, query="document"
    )
    first = [record.nll for record in trainer.records]
    trainer.evaluate([document for document, _ in EPISODES])
    assert [record.nll for record in trainer.records] == first


@pytest.mark.parametrize("carried", [False, True])
def test_odd_neighbors_agree(curves, tokenizer, model, carried):
    """Empty ones make no step; one token has no target, but its step carries momentum and decays."""
    assert len(tokenize(tokenizer, ONE_TOKEN)) == 1
    assert len(tokenize(tokenizer, LONG)) > 3 * MAX_LENGTH
    odd = ["", TEXTS[0], ONE_TOKEN, "", LONG, "\n", "東京 Ελλάδα 🐳🐋"]
    episodes = [(PROOF, odd), (WHALE, [ONE_TOKEN, *odd, "", ""])]
    settings = Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=None, carry_optimizer=carried)
    without_single = [[text for text in odd if len(tokenize(tokenizer, text)) != 1] for _ in episodes]
    trainer = curves(
        model,
        plain_model("gpt2", tokenizer),
        episodes,
        settings,
        Settings(MAX_LENGTH, LEARNING_RATE, carry_optimizer=carried),
        num_neighbors=len(odd) + 3,
        chunks_per_neighbor=None,
        reset_optimizer=not carried,
    )
    stepless = adapted_nll(
        plain_model("gpt2", tokenizer),
        tokenizer,
        [(document, texts) for (document, _), texts in zip(episodes, without_single, strict=True)],
        settings,
    )
    ends = [(record.nll[-1], curve[-1]) for record, curve in zip(trainer.records, stepless, strict=True)]
    assert max(abs(a / b - 1) for a, b in ends) > 10 * TOLERANCE, "the steps without a target change nothing"


@pytest.mark.parametrize("query", ["document", "prefix"])
def test_the_preset_agrees_over_documents_with_odd_neighbors(curves, tokenizer, query):
    """Three documents in sequence, with and without split."""
    plain = plain_model("gpt2", tokenizer)
    odd = ["", TEXTS[0], ONE_TOKEN, LONG, "東京 Ελλάδα 🐳🐋", ""]
    episodes = [(PROOF, odd), (WHALE, [ONE_TOKEN, *odd]), (CODE, [*TEXTS, *odd])]
    settings = Settings(MAX_LENGTH, LEARNING_RATE, query=query, first_chunks=None, carry_optimizer=True)
    unlike = Settings(MAX_LENGTH, LEARNING_RATE, query=query, first_chunks=None)
    curves(copy.deepcopy(plain), plain, episodes, settings, unlike, preset="tttlm", num_neighbors=50)


def test_neighbors_beyond_the_cutoff_of_the_preset_are_left_out(tokenizer, tmp_path):
    """The authors drop what is farther than 4.0; squared that is 16.0, which itself is kept."""
    plain = plain_model("gpt2", tokenizer)
    args = TestTimeTrainingArguments.from_preset("tttlm", output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True)
    texts = [TEXTS[row % 10] for row in range(20)]
    retriever = GivenNeighbors(tokenizer, [(CODE, texts)], "document")
    trainer = TestTimeTrainer(plain, args, retriever, processing_class=tokenizer)
    trainer.evaluate([CODE])
    assert trainer.records[0].distances == [float(row) for row in range(17)]


def test_a_last_chunk_of_one_token_is_a_step(curves, tokenizer, model):
    tokens = tokenize(tokenizer, LONG)
    length = next(length for length in range(12, 64) if len(tokens) % length == 1)
    settings = Settings(length, LEARNING_RATE, first_chunks=None)
    unlike = Settings(length, LEARNING_RATE, first_chunks=len(tokens) // length)
    curves(model, plain_model("gpt2", tokenizer), [(CODE, [LONG, LONG])], settings, unlike, chunks_per_neighbor=None)


def test_the_first_two_chunks_of_each_neighbor_agree(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=2)
    curves(
        model,
        plain_model("gpt2", tokenizer),
        [(CODE, [LONG, TEXTS[0], WHALE])],
        settings,
        Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=None),
        chunks_per_neighbor=2,
    )


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("chunks", [1, None])
def test_accumulated_neighbors_agree(curves, tokenizer, model, size, chunks):
    """
    A group of neighbors is one step on the mean of its chunks' losses; an empty one is no part of it.

    Without clipping, which would hide a sum in place of the mean.
    """
    texts = [TEXTS[0], LONG, "", TEXTS[2], "", "", TEXTS[7], TEXTS[6]]
    settings = Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=chunks, neighbors_per_step=size, max_grad_norm=1e6)
    curves(
        model,
        plain_model("gpt2", tokenizer),
        [(CODE, texts)],
        settings,
        Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=chunks, max_grad_norm=1e6),
        num_neighbors=8,
        gradient_accumulation_steps=size,
        chunks_per_neighbor=chunks,
        max_grad_norm=1e6,
    )


def test_a_last_neighbor_left_over_from_the_groups_is_one_step(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, LEARNING_RATE, first_chunks=None, neighbors_per_step=2)
    overrides = {"gradient_accumulation_steps": 2, "chunks_per_neighbor": None}
    curves(model, plain_model("gpt2", tokenizer), [(CODE, [TEXTS[0], TEXTS[2], LONG])], settings, **overrides)


def test_two_passes_agree(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, LEARNING_RATE, passes=2)
    trainer = curves(model, plain_model("gpt2", tokenizer), EPISODES, settings, num_train_epochs=2)
    assert [len(record.nll) for record in trainer.records] == [7, 9, 5]


def test_two_passes_over_accumulated_neighbors_agree(curves, tokenizer, model):
    settings = Settings(MAX_LENGTH, LEARNING_RATE, passes=2, neighbors_per_step=3)
    overrides = {"num_train_epochs": 2, "gradient_accumulation_steps": 3}
    curves(model, plain_model("gpt2", tokenizer), EPISODES, settings, **overrides)


@pytest.mark.parametrize("carried", [False, True])
def test_a_lora_model_agrees(curves, tokenizer, tiny_models, carried):
    def with_adapters():
        torch.manual_seed(3)
        config = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(plain_model("llama", tokenizer), config)

    settings = Settings(MAX_LENGTH, 1e-2, query="prefix", carry_optimizer=carried)
    unlike = Settings(MAX_LENGTH, 1e-2, query="prefix", carry_optimizer=not carried)
    overrides = {"num_neighbors": 4, "reset_optimizer": not carried}
    curves(with_adapters(), with_adapters(), EPISODES, settings, unlike, **overrides)


def test_fewer_neighbors_than_asked_for_agree(curves, tokenizer, model):
    episodes = [(CODE, TEXTS[:1]), (WHALE, TEXTS[2:5])]
    settings = Settings(MAX_LENGTH, LEARNING_RATE)
    trainer = curves(model, plain_model("gpt2", tokenizer), episodes, settings, num_neighbors=20)
    assert [len(record.nll) for record in trainer.records] == [2, 4]


@pytest.mark.parametrize("setting", ["weight_decay", "max_grad_norm"])
def test_weight_decay_and_clipping_agree(curves, tokenizer, model, setting):
    values = {"weight_decay": (10.0, 0.01), "max_grad_norm": (1e-4, 1e4)}[setting]
    settings, unlike = (Settings(MAX_LENGTH, LEARNING_RATE, carry_optimizer=True, **{setting: v}) for v in values)
    overrides = {setting: values[0], "reset_optimizer": False}
    curves(model, plain_model("gpt2", tokenizer), EPISODES, settings, unlike, **overrides)


def test_the_authors_split_inside_a_character_agrees(curves, tokenizer, model):
    document = next(
        text
        for text in ("x" * shift + " 東京タワー 🐳 naïve Ελλάδα 寿司 und Größe" for shift in range(40))
        if "\ufffd" in split(tokenizer, text, "prefix")[0] and "\ufffd" in split(tokenizer, text, "prefix")[1]
    )
    settings = Settings(MAX_LENGTH, LEARNING_RATE, query="prefix")
    unlike = Settings(MAX_LENGTH, LEARNING_RATE, query="document")
    trainer = curves(model, plain_model("gpt2", tokenizer), [(document, TEXTS[3:7])], settings, unlike, cut="tokens")
    # U+FFFD has three bytes in UTF-8, and the scored text is what the model reads, not a slice of the document
    assert trainer.records[0].num_bytes == len(split(tokenizer, document, "prefix")[1].encode())


def test_max_length_is_capped_at_the_context_of_the_model(curves, tokenizer, model):
    episodes = [(WHALE * 5, [LONG * 2, TEXTS[0]])]
    assert len(tokenize(tokenizer, episodes[0][0])) > 128
    plain, context = plain_model("gpt2", tokenizer), model.config.n_positions
    curves(model, plain, episodes, Settings(context, LEARNING_RATE), max_length=1024)


def test_evaluating_again_wraps_the_optimizer_no_deeper(curves, tokenizer, model):
    trainer = curves(model, plain_model("gpt2", tokenizer), EPISODES[:1], Settings(MAX_LENGTH, LEARNING_RATE))
    first = [record.nll for record in trainer.records]
    for _ in range(2):
        trainer.evaluate([CODE])
        assert [record.nll for record in trainer.records] == first
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
