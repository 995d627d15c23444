"""The page of `tttnn demo`: what is on it, by hand from a record."""

import runpy
from pathlib import Path

import gradio
import pytest
from conftest import TEXTS

from tttnn.generation import TestTimeGenerator, explore, make_demo
from tttnn.neighbors import PartialAnswer


ROOT = Path(__file__).parents[2]


@pytest.fixture
def trainer(make_trainer):
    return make_trainer(learning_rate=0.02, save_tokens=True, score_every_neighbor=True)


def test_the_page_shows_what_the_record_has(trainer):
    page = explore(trainer, TEXTS[0], max_new_tokens=5)
    with trainer.episodes() as episodes:
        record = episodes.run(TEXTS[0])
    assert page.known + "".join(text for text, _ in page.tokens) == TEXTS[0]
    gains = [before - after for before, after in zip(*record.token_bits, strict=True)]
    assert [gain for _, gain in page.tokens] == pytest.approx(gains)
    assert page.curve["bits per byte"].tolist() == pytest.approx([record.bits_per_byte(n) for n in range(5)])
    assert [row[0] for row in page.neighbors] == ["1", "2", "3", "4"]
    assert page.neighbors[0][1] == f"{record.distances[0]:.3f}"
    assert page.neighbors[0][2] == "near-copy", "the text itself is in the corpus"
    generator = TestTimeGenerator(trainer)
    assert page.before == generator(page.known, adapts=False, max_new_tokens=5, do_sample=False).text
    assert page.after == generator(page.known, max_new_tokens=5, do_sample=False).text


def test_shards_that_did_not_answer_are_told(trainer, monkeypatch):
    find = trainer.retriever.retrieve
    monkeypatch.setattr(trainer.retriever, "retrieve", lambda *args: PartialAnswer(find(*args), [3, 5]))
    assert "Without the shards [3, 5], which did not answer." in explore(trainer, TEXTS[0], max_new_tokens=0).summary


def test_a_text_that_cannot_be_divided_is_refused(trainer):
    for text in ("", "a"):
        with pytest.raises(ValueError, match="too short to be divided"):
            explore(trainer, text)


def test_a_press_of_the_button_fills_the_page(trainer):
    page = make_demo(trainer, [TEXTS[1]], max_new_tokens=4)
    press = next(function for function in page.fns.values() if function.name == "run")
    outputs = press.fn(TEXTS[0])
    assert len(outputs) == len(press.outputs) == 7
    with pytest.raises(gradio.Error, match="too short"):
        press.fn("")
    labels = [component.value for component in page.blocks.values() if isinstance(component, gradio.Button)]
    assert labels == ["Adapt"]


def test_the_page_of_the_space_is_made_from_its_variables(monkeypatch, model_folder, index_folder, tmp_path):
    monkeypatch.setenv("MODEL", str(model_folder))
    monkeypatch.setenv("INDEX", str(index_folder))
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "hub_cards" / "demo" / "app.py"))
    press = next(function for function in names["demo"].fns.values() if function.name == "run")
    assert "bits per byte" in press.fn(TEXTS[0])[0]
