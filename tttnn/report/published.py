"""Which published figures stand beside a run."""

from dataclasses import dataclass

from tttnn.adaptation.presets import PRESETS
from tttnn.evaluation.pile import PUBLISHED, PUBLISHED_NEIGHBORS
from tttnn.report.runs import Run


PUBLISHED_OWNERS = {"gpt2": "openai-community", "gpt2-large": "openai-community", "gpt-neo-1.3B": "EleutherAI"}
PUBLISHED_TITLES = {
    "gpt2": "GPT-2, the query is the scored text",
    "gpt2-split": "GPT-2, the query is the first half",
    "gpt2-large": "GPT-2 Large, the query is the scored text",
    "gpt-neo-1.3B": "GPT-Neo 1.3B, the query is the scored text",
}


@dataclass
class Published:
    """
    Which published figures stand beside a run.

    Args:
        name (`str`):
            A key of `PUBLISHED`.
        is_same (`bool`):
            Whether the run has the same model, by name, and the settings of the published ones.
        neighbors (`int`):
            The number of neighbors, of those published, that is nearest to the run's.
    """

    name: str
    is_same: bool
    neighbors: int

    @property
    def title(self) -> str:
        """Name the model and the protocol."""
        return PUBLISHED_TITLES[self.name]

    def figures(self, task: str) -> tuple[float, float]:
        """Give the published bits per byte of a task before and after."""
        row = PUBLISHED[self.name][task]
        return row[0], row[PUBLISHED_NEIGHBORS.index(self.neighbors)]


def published_for(run: Run) -> Published | None:
    """
    Choose the published figures that are nearest to a run.

    Args:
        run (`Run`):
            Its settings name model and protocol.

    Returns:
        `Published`: those of the same model and protocol, or else GPT-2's; `None` for a method without any.
    """
    if run.settings.get("method", "ttt") != "ttt":
        return None
    used = run.used_settings()
    wanted = used.get("num_neighbors", 0)
    neighbors = min(PUBLISHED_NEIGHBORS, key=lambda number: abs(number - wanted))
    is_prefix = used.get("query", "prefix") == "prefix"
    model = str(used.get("model"))
    for name, owner in PUBLISHED_OWNERS.items():
        if model in (name, f"{owner}/{name}") and (name == "gpt2" or not is_prefix):
            rate, length = (5e-6, 2048) if name == "gpt-neo-1.3B" else (2e-5, 1024)
            theirs = {
                **{field: value for field, value in PRESETS["tttlm"].items() if field not in ("query", "optim")},
                **{"num_neighbors": neighbors, "learning_rate": rate, "max_length": length, "trainable": "full"},
            }
            same = wanted == neighbors and all(used.get(field) == value for field, value in theirs.items())
            return Published("gpt2-split" if is_prefix else name, same, neighbors)
    return Published("gpt2-split" if is_prefix else "gpt2", False, neighbors)
