"""Published settings, by name, and those of files that `tttnn tune` wrote."""

from typing import Any

from tttnn.adaptation.tuning import Tuning, read_tuning
from tttnn.errors import InputError


PRESETS: dict[str, dict[str, Any]] = {
    # What the method's authors ran. Source: TTT-NN (https://huggingface.co/papers/2305.18466) and its public code.
    "tttlm": {
        "num_neighbors": 50,
        "order": "nearest",
        "query": "document",
        "cut": "tokens",
        "prompt": "none",
        "mix": "none",
        "selector": "nearest",
        "distinct": None,
        "train_on": "neighbors",
        "max_length": 1024,
        "max_distance": 16.0,  # 4.0 as a Euclidean distance
        "chunks_per_neighbor": None,
        "score_every_neighbor": True,
        "reset_optimizer": False,
        "disable_dropout": False,
        "optim": "adamw_torch",
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
    }
}


def preset_settings(name: str) -> tuple[dict[str, Any], Tuning | None]:
    """
    Give the settings of a preset.

    Args:
        name (`str`):
            A key of `PRESETS`, or the path of a file of `tttnn tune`, which ends with `.json`.

    Returns:
        `tuple[dict[str, Any], Tuning | None]`: the settings, and what the file holds.

    Raises:
        `ValueError`: If there is no such preset, or the file is damaged or of another version.
    """
    if name in PRESETS:
        return PRESETS[name], None
    if not name.endswith(".json"):
        raise InputError(
            f"There is no preset {name!r}. Pass one of {', '.join(map(repr, PRESETS))}, or a file of `tttnn tune`, "
            "whose name ends with .json."
        )
    tuning = read_tuning(name)
    return tuning.settings, tuning
