"""The tutorials run, at a small size: their cells with tiny models, one after another."""

import json
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def cells_of(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["own-code", "own-papers"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_and_without_an_error(path):
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert sum(bool(cell["outputs"]) for cell in cells) >= 5, "a reader sees results"
    assert str(ROOT) not in path.read_text(), "no path of a machine"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs_with_tiny_models(path, model_folder, embedder_folder, tmp_path, monkeypatch):
    folder = tmp_path / "tutorial"
    folder.mkdir()
    for name in ("examples", "docs", "tttnn"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    import packaged_models

    monkeypatch.setattr(packaged_models, "smollm2", lambda: str(model_folder))
    monkeypatch.setattr(packaged_models, "minilm", lambda: str(embedder_folder))
    names = {}
    for cell in cells_of(path):
        source = "".join(cell["source"])
        # the tiny model reads 64 tokens, and the whole corpus would take a minute
        for before, after in [("PASSAGE = 100", "PASSAGE = 32"), ("max_length=128", "max_length=32")]:
            source = source.replace(before, after)
        source = source.replace("[:1500]", "[:300]").replace("[-600:]", "[-60:]").replace("[:600]", "[:60]")
        source = source.replace('"max_new_tokens": 40', '"max_new_tokens": 4')
        source = source.replace('"retrieval", "methods", "evaluation"]', '"methods"]')
        exec(compile(source, path.name, "exec"), names)  # noqa: S102
    from transformers.utils import logging

    logging.enable_progress_bar()
    logging.set_verbosity_warning()
