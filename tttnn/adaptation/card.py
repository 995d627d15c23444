"""The card of a model that a trainer saves: which model it is, and what it was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import ModelCardData
from transformers.modelcard import extract_hyperparameters_from_trainer

from tttnn.adaptation.requirements import is_peft


if TYPE_CHECKING:
    from tttnn.adaptation.trainer import TestTimeTrainer

METHOD = "[test-time training on nearest neighbors](https://huggingface.co/papers/2305.18466)"


def model_card(trainer: "TestTimeTrainer", name: str, dataset: str | None, **metadata: Any) -> str:  # noqa: ANN401
    """Write the card of the trainer's model as it is now; `metadata` are fields of the front matter."""
    base_model = metadata.pop("base_model") or trainer.model.config._name_or_path
    is_on_hub = bool(base_model) and not Path(base_model).exists()
    metadata["tags"] = list(dict.fromkeys([*metadata["tags"], "test-time-training"]))
    metadata |= {"base_model": base_model} if is_on_hub else {}
    data = ModelCardData(library_name="peft" if is_peft(trainer.model) else "transformers", **metadata)
    base = f"[{base_model}](https://huggingface.co/{base_model})" if is_on_hub else f"`{Path(base_model).name}`"
    if not base_model:
        base = f"a {type(trainer.model).__name__} without a name"
    lines = ["---", data.to_yaml(), "---", "", f"# {name}", "", f"This model is {base}, {_origin(trainer, dataset)}."]
    settings = _settings(trainer)
    if settings:
        lines += ["", "## Settings", "", *(f"- {key}: {value}" for key, value in settings.items())]
    lines += ["", "## Versions", "", f"- Transformers {transformers.__version__}", f"- PyTorch {torch.__version__}"]
    return "\n".join(lines) + "\n"


def _origin(trainer: "TestTimeTrainer", dataset: str | None) -> str:
    """Say what was done to the base model, in the words that follow its name."""
    parts = [f"fine-tuned on {dataset or 'a data set without a name'}"] if trainer.state.epoch else []
    if trainer.adaptation is not None:
        record = trainer.adaptation
        trained_on = [f"{len(record.train_loss)} of its nearest neighbors"] if record.train_loss else []
        trained_on += ["the text itself"] if record.query_train_loss else []
        parts.append(f"adapted at test time to one text by training on {' and '.join(trained_on)} ({METHOD})")
    return " and ".join(parts) or f"with its weights unchanged: {METHOD} restores them after each document"


def _settings(trainer: "TestTimeTrainer") -> dict[str, Any]:
    """Give the settings with which the weights were trained."""
    if trainer.adaptation is None:
        return extract_hyperparameters_from_trainer(trainer) if trainer.state.epoch else {}
    names = ("learning_rate", "optim", "weight_decay", "max_grad_norm", "num_train_epochs", "seed")
    settings = {name: getattr(trainer.args, name) for name in names}
    if tuning := trainer.args.tuning:
        settings["preset"] = f"{tuning.name}, chosen on {tuning.num_documents} documents of the index by `tttnn tune`"
    return settings | {"max_length": trainer.max_length, "trained tokens": trainer.adaptation.num_trained_tokens}
