"""Bits of single tokens, which `save_tokens` keeps: their texts make the text, and their sums the score."""

import math

import pytest
from conftest import TEXTS

from tttnn.adaptation import split_document
from tttnn.adaptation.windows import token_texts
from tttnn.methods import Context, Dynamic, Prefix
from tttnn.records import DocumentRecord


@pytest.mark.parametrize("text", [*TEXTS, "", "naïve 東京 🧭🧭 Ελλάδα " * 8])
def test_texts_of_tokens_make_the_text(tokenizer, text):
    token_ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, token_ids)
    assert len(texts) == len(token_ids)
    assert "".join(texts) == tokenizer.decode(token_ids)


def test_a_character_of_several_tokens_is_in_the_last_of_them(tokenizer):
    token_ids = tokenizer("東")["input_ids"]
    assert len(token_ids) > 1
    assert token_texts(tokenizer, token_ids) == [*[""] * (len(token_ids) - 1), "東"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mix": "both"},
        {"score_every_neighbor": True},
        {"prompt": "none"},
        {"method": Context()},
        {"method": Prefix()},
        {"method": Dynamic()},
    ],
)
def test_bits_of_tokens_sum_to_the_score(make_trainer, tokenizer, settings):
    trainer = make_trainer(save_tokens=True, learning_rate=0.02, **settings)
    trainer.evaluate([TEXTS[4], TEXTS[0]])
    for record, text in zip(trainer.records, (TEXTS[4], TEXTS[0]), strict=True):
        _, scored = split_document(tokenizer, text, "prefix", "text")
        assert "".join(record.tokens) == scored
        ends = [record.nll[0], record.nll[-1]][: len(record.token_bits)]
        assert [sum(bits) * math.log(2) for bits in record.token_bits] == pytest.approx(ends, abs=0.01)
        assert len(record.token_bits) == (1 if len(record.nll) == 1 else 2)
        assert DocumentRecord.from_json(record.to_json()) == record


def test_tokens_are_not_kept_unless_asked_for(make_trainer):
    trainer = make_trainer()
    trainer.evaluate([TEXTS[0]])
    assert trainer.records[0].tokens == trainer.records[0].token_bits == []


def test_a_journal_of_either_kind_is_resumed(make_trainer):
    from tttnn.adaptation import run_settings

    settings = []
    for keeps in (False, True):
        trainer = make_trainer(save_tokens=keeps)
        with trainer.episodes():
            settings.append(run_settings(trainer))
    assert settings[0] == settings[1]
