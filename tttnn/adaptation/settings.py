"""What the numbers of a run depend on, for its journal."""

import json
from dataclasses import fields
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from tttnn.adaptation import internals
from tttnn.adaptation.callbacks import TestTimeCallback
from tttnn.adaptation.options import NeighborStepArguments, RetrievalArguments, ScoringArguments, StepArguments
from tttnn.adaptation.requirements import num_positions
from tttnn.adaptation.windows import prefix_token_id
from tttnn.neighbors import Selector, describe_retriever
from tttnn.records import digest
from tttnn.selection import SELECTORS


if TYPE_CHECKING:
    from tttnn.adaptation.trainer import TestTimeTrainer

# Options that change no number: where the text is, how many windows or documents share a pass, how memory is saved.
NO_NUMBER = (
    "text_column",
    "save_tokens",
    "batch_documents",
    "per_device_eval_batch_size",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
)
# Other fields of `Trainer`; the last three are constant, and stand in the journals of 0.1.
TRAINER_FIELDS = (
    *("seed", "bf16", "fp16"),
    *("per_device_train_batch_size", "average_tokens_across_devices", "remove_unused_columns"),
)


def run_settings(trainer: "TestTimeTrainer") -> dict[str, Any]:
    """
    Say what the numbers of a run depend on, inside of `episodes`.

    The learning rate is the one in the optimizer's groups: an optimizer that was passed has its own.

    Args:
        trainer (`TestTimeTrainer`):
            With its method, arguments, model and retriever.

    Returns:
        `dict[str, Any]`: by name; a journal keeps it.
    """
    groups = (RetrievalArguments, StepArguments, NeighborStepArguments, ScoringArguments)
    names = [item.name for group in groups for item in fields(group) if item.name not in NO_NUMBER]
    parameters = trainer.model.parameters()
    # a sample of each tensor tells a model from another of the same name, at almost no cost
    samples = [weight.detach().flatten()[:: max(1, weight.numel() // 64)].tolist() for weight in parameters]
    rates = {group.get("initial_lr", group["lr"]) for group in trainer.optimizer.param_groups}
    settings = {
        **trainer.method.settings(),
        **{name: getattr(trainer.args, name) for name in (*names, *TRAINER_FIELDS)},
        **dict(zip(("window_length", "stride"), _windows(trainer), strict=True)),
        "learning_rate": rates.pop() if len(rates) == 1 else sorted(rates),
        "model": trainer.model.config._name_or_path,
        "weights": digest(repr(samples)),
        "config_digest": _config_digest(trainer.model.config),
        "tokenizer": trainer.processing_class.name_or_path,
        "tokenizer_digest": trainer.tokenizer_digest,
        "prefix_token": prefix_token_id(trainer.processing_class),
        "revision": getattr(trainer.model.config, "_commit_hash", None),  # set by transformers if it came from the Hub
        **describe_retriever(trainer.retriever),
        "selector": _name(trainer.selector),
        "optimizer": repr(trainer.optimizer.defaults),
        "early_stopping": [],
    }
    for callback in internals.callbacks(trainer):
        if isinstance(callback, TestTimeCallback):
            for name, value in callback.settings().items():
                settings[name] = [*settings.get(name, []), value]
    return settings


def tokenizer_digest(processing_class: PreTrainedTokenizerBase) -> str:
    """Tell a tokenizer (`PreTrainedTokenizerBase`) from another of the same name by 16 hexadecimal digits."""
    if not processing_class.is_fast:
        return digest(repr(sorted(processing_class.get_vocab().items())))
    content = processing_class.backend_tokenizer.to_str()
    # before them stand truncation and padding: a call may set these, and they change no token of ours
    return digest(content[content.index('"added_tokens"') :])


def _config_digest(config: PreTrainedConfig) -> str:
    """Tell a model with the same weights by what its config says otherwise than its class does."""
    ignored = {"_name_or_path", "transformers_version", "use_cache", "dtype", "architectures"}
    content = {name: value for name, value in config.to_diff_dict().items() if name not in ignored}
    return digest(json.dumps(content, sort_keys=True, default=str))


def _windows(trainer: "TestTimeTrainer") -> tuple[int, int]:
    """Say what windows and strides the score before has, where the arguments leave it to the model's context."""
    length = trainer.window_length_within(num_positions(trainer.model))
    return length, trainer.stride_within(length)


def _name(selector: Selector) -> str:
    """Name a selector the same in every process: what has no representation of its own is shown by its address."""
    for name, known in SELECTORS.items():
        if selector is known:
            return name
    if isinstance(selector, partial):
        values = [*map(repr, selector.args), *(f"{name}={value!r}" for name, value in selector.keywords.items())]
        return f"partial({', '.join([_name(selector.func), *values])})"
    if isinstance(selector, FunctionType | MethodType):
        return selector.__qualname__
    has_own = "__repr__" in {name for kind in type(selector).__mro__[:-1] for name in vars(kind)}
    return repr(selector) if has_own else type(selector).__qualname__
