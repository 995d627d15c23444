"""What the numbers of a run depend on, for its journal."""

import json
from dataclasses import fields
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from tttnn.adaptation import internals
from tttnn.adaptation.callbacks import TestTimeCallback
from tttnn.adaptation.options import NeighborStepArguments, RetrievalArguments, ScoringArguments, StepArguments
from tttnn.adaptation.requirements import num_positions
from tttnn.adaptation.windows import prefix_token_id
from tttnn.neighbors import describe_retriever
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
    rates = {group.get("initial_lr", group["lr"]) for group in trainer.optimizer.param_groups}
    settings = {
        **trainer.method.settings(),
        **{name: getattr(trainer.args, name) for name in (*names, *TRAINER_FIELDS)},
        **dict(zip(("window_tokens", "stride_tokens"), _windows(trainer), strict=True)),
        "learning_rate": rates.pop() if len(rates) == 1 else sorted(rates),
        "model": trainer.model.config._name_or_path,
        "weights": weights_digest(trainer.model),
        "config_digest": _config_digest(trainer.model.config),
        "tokenizer": trainer.processing_class.name_or_path,
        "tokenizer_digest": trainer.tokenizer_digest,
        "prefix_token": prefix_token_id(trainer.processing_class),
        "revision": getattr(trainer.model.config, "_commit_hash", None),  # set by transformers if it came from the Hub
        **describe_retriever(trainer.retriever),
        "selector": trainer.selector_name,
        "optimizer": repr(trainer.optimizer.defaults),
        "early_stopping": [],
    }
    # an earlier journal of such a run does not resume: its numbers are those of other rules
    has_new_rules = settings["drop_near_copies"] or settings.get("trainable") == "prefix"
    settings["rules"] = 2 if has_new_rules or "context_length" in settings else 1
    for callback in internals.callbacks(trainer):
        if isinstance(callback, TestTimeCallback):
            for name, value in callback.settings().items():
                settings[name] = [*settings.get(name, []), value]
    return settings


def weights_digest(model: torch.nn.Module) -> str:
    """
    Tell a model from another of the same name by a sample of each tensor, at almost no cost.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.

    Returns:
        `str`: 16 hexadecimal digits; of the same weights in another precision others.
    """
    return digest(repr([_sample(weight) for weight in model.parameters()]))


def _sample(weight: torch.Tensor) -> list[Any]:
    if weight.is_meta:  # accelerate keeps its values on a disk or another device
        return [*weight.shape, str(weight.dtype)]
    return list(weight.detach().flatten()[:: max(1, weight.numel() // 64)].tolist())


def tokenizer_digest(processing_class: PreTrainedTokenizerBase) -> str:
    """
    Tell a tokenizer from another of the same name.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The tokenizer.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    if not processing_class.is_fast:
        return digest(repr(sorted(processing_class.get_vocab().items())))
    content = processing_class.backend_tokenizer.to_str()
    # before them stand truncation and padding: a call may set these, and they change no token of ours
    return digest(content[content.index('"added_tokens"') :])


def _config_digest(config: PreTrainedConfig) -> str:
    """Tell a model with the same weights by what its config says otherwise than its class does."""
    return digest(json.dumps(_without_names(config.to_diff_dict()), sort_keys=True, default=str))


def _without_names(content: Any) -> Any:  # noqa: ANN401
    """Leave out, at any depth, what changes no number of a model with the same weights."""
    ignored = ("_name_or_path", "transformers_version", "use_cache", "dtype", "architectures")
    if not isinstance(content, dict):
        return content
    return {str(name): _without_names(value) for name, value in content.items() if name not in ignored}


def _windows(trainer: "TestTimeTrainer") -> tuple[int, int]:
    """Say what windows and strides the score before has, where the arguments leave it to the model's context."""
    length = trainer.window_length_within(num_positions(trainer.model))
    return length, trainer.stride_within(length)


def selector_name(selector: Any) -> str:  # noqa: ANN401
    """Name a selector the same in every process, by what it holds; what has no such form is named by its type."""
    for name, known in SELECTORS.items():
        if selector is known:
            return name
    if isinstance(selector, MethodType):
        return f"{selector_name(selector.__self__)}.{selector.__name__}"
    name = _form(selector)
    try:
        return _call(name, [], vars(selector)) if name == type(selector).__qualname__ else name
    except TypeError:  # it has slots
        return name


def _form(value: Any) -> str:  # noqa: ANN401
    """Write a value without addresses, and sets in one order."""
    if isinstance(value, FunctionType):
        return value.__qualname__
    if isinstance(value, partial):
        return _call("partial", [value.func, *value.args], value.keywords)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_form, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_form, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_form(key)}: {_form(item)}' for key, item in value.items())}}}"
    shown = repr(value)
    has_own = any("__repr__" in vars(kind) for kind in type(value).__mro__[:-1])
    return shown if has_own and " at 0x" not in shown.lower() else type(value).__qualname__


def _call(name: str, values: list[Any], named: dict[str, Any]) -> str:
    shown = [*map(_form, values), *(f"{key}={_form(value)}" for key, value in named.items())]
    return f"{name}({', '.join(shown)})"
