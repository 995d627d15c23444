"""Published settings, by name."""

from typing import Any


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
