"""Which published figures stand beside a run."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tttnn.adaptation.presets import PRESETS
from tttnn.report.runs import Run


@cache
def published_figures() -> dict[str, Any]:
    """Read the figures, with their source and licence."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return content


@dataclass
class Published:
    """The published figures that stand beside a run."""

    name: str
    is_same_model: bool  # by name
    differing: dict[str, tuple[Any, Any]]  # settings of theirs and of the run, the model aside
    neighbors: int  # of the published numbers, the nearest to that of the run

    @property
    def is_same(self) -> bool:
        """Whether the run has their model, by name, and their settings."""
        return self.is_same_model and not self.differing

    @property
    def title(self) -> str:
        """Name the model and the protocol."""
        return str(published_figures()["runs"][self.name]["title"])

    def figures(self, task: str) -> tuple[float, float]:
        """Give the published bits per byte of a task before and after."""
        row = published_figures()["runs"][self.name]["bits_per_byte"][task]
        return row[0], row[published_figures()["neighbors"].index(self.neighbors)]


def published_for(run: Run) -> Published | None:
    """Choose the figures of the same model and protocol, or else GPT-2's; `None` for a method without figures."""
    if run.settings["method"] != "ttt":
        return None
    used = run.used_settings()
    wanted = used.get("num_neighbors", 0)
    neighbors = min(published_figures()["neighbors"], key=lambda number: abs(number - wanted))
    query = used.get("query", "prefix")
    preset = {name: value for name, value in PRESETS["tttlm"].items() if name != "optim"}  # one AdamW or the other
    if query == "document":
        del preset["cut"]  # nothing is cut
    for name, published in published_figures()["runs"].items():
        settings = published["settings"]
        if used.get("model") in (settings["model"], settings["model"].split("/")[1]) and query == settings["query"]:
            return Published(name, True, _differing(used, preset | settings, neighbors), neighbors)
    name = "gpt2-split" if query == "prefix" else "gpt2"
    settings = published_figures()["runs"][name]["settings"]
    return Published(name, False, _differing(used, preset | settings, neighbors), neighbors)


def _differing(used: dict[str, Any], expected: dict[str, Any], neighbors: int) -> dict[str, tuple[Any, Any]]:
    """Give the published and the run's own value of each setting but the model that is not the published one."""
    expected = {"prompt": "none", **expected, "num_neighbors": neighbors, "trainable": "full"}
    return {
        name: (value, used.get(name))
        for name, value in expected.items()
        if name != "model" and used.get(name) != value
    }
