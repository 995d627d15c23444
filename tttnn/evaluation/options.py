"""The arguments of `tttnn evaluate`: what is evaluated, how, and what each method has of its own."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from transformers import HfArgumentParser, TrainingArguments

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.adaptation.presets import PRESETS
from tttnn.errors import InputError
from tttnn.methods import METHODS, SIZES, Method


DTYPES = ("float32", "bfloat16", "float16")

# Fields of `TrainingArguments` that `tttnn evaluate --help` shows beside our own; all others are accepted as well.
SHOWN = (
    *("output_dir", "learning_rate", "weight_decay", "max_grad_norm", "optim", "num_train_epochs", "seed"),
    *("gradient_accumulation_steps", "per_device_eval_batch_size", "activation_checkpointing", "bf16", "fp16"),
    *("use_cpu", "report_to", "logging_steps", "disable_tqdm", "lr_scheduler_type"),
)


@dataclass
class EvaluateArguments:
    """What `tttnn evaluate` evaluates on what."""

    model: str = field(metadata={"help": "Hub id or folder of a causal language model."})
    dataset: str = field(
        metadata={
            "help": "Test documents: a .jsonl, .jsonl.zst or .parquet file, a folder of texts, or a Hub data set."
        }
    )
    index: str | None = field(
        default=None, metadata={"help": "Hub id or folder of an index (see `tttnn build-index`)."}
    )
    method: str = field(
        default="ttt",
        metadata={
            "help": "; ".join(f"{name}: {method.description}" for name, method in METHODS.items()) + ".",
            "choices": list(METHODS),
        },
    )
    preset: str | None = field(
        default=None, metadata={"help": "Start from a published setting: tttlm. Other options override it."}
    )
    limit: int | None = field(default=None, metadata={"help": "Evaluate the first so many documents only."})
    split: str = field(default="test", metadata={"help": "Split of a Hub data set."})
    id_column: str | None = field(default=None, metadata={"help": "Column with the documents' ids."})
    dtype: str = field(
        default="float32",
        metadata={"help": "Precision of the weights: float32, or bfloat16 or float16, which learn less."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    index_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the index."})
    index_shards: list[int] | None = field(
        default=None, metadata={"help": "Numbers of the shards to fetch and search: 0 3. By default all."}
    )
    index_texts: str = field(
        default="local",
        metadata={"help": "remote: leave the texts on the Hub, and ask for those of the neighbors only."},
    )
    index_fraction: list[float] | None = field(
        default=None,
        metadata={"help": "Evaluate with random parts of the index, one after another: 0.01 0.1 0.5 1.0."},
    )
    embedder: str | None = field(
        default=None, metadata={"help": "Embedder of the index, where it now has another name or path."}
    )
    validation: list[str] | None = field(
        default=None, metadata={"help": "Documents on which settings are chosen; none may be a test document."}
    )
    validation_limit: int | None = field(default=None, metadata={"help": "Choose on the first so many of them only."})
    learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Learning rates to choose from on the validation documents."}
    )

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"`dtype` is {self.dtype!r}. Pass one of {', '.join(DTYPES)}.")
        if self.method not in METHODS:
            raise InputError(f"`method` is {self.method!r}. Pass one of {', '.join(METHODS)}.")
        if self.index is None and METHODS[self.method].trainer.retrieves:
            raise InputError(f"The method {self.method} retrieves neighbors. Pass `--index`.")
        for rate in self.learning_rates or []:
            if not 0 < rate < math.inf:
                raise InputError(f"`learning_rates` has {rate}. Pass rates above 0.")


Arguments = TypeVar("Arguments", bound=EvaluateArguments)


def parse_evaluation(
    kind: type[Arguments], argv: Sequence[str] | None, prog: str | None = None, description: str = ""
) -> tuple[Arguments, TestTimeTrainingArguments, dict[str, Any]]:
    """
    Parse what is evaluated and how, on the base of a preset if one is named.

    Args:
        kind (`type`):
            `EvaluateArguments`, or a dataclass derived from it.
        argv (`Sequence[str]`, *optional*):
            The arguments. By default those of the process.
        prog (`str`, *optional*):
            Name in the help.
        description (`str`, *optional*, defaults to `""`):
            Begins the help.

    Returns:
        `tuple`: an instance of `kind`, the `TestTimeTrainingArguments`, and what the method has of its own, by name.

    Raises:
        `ValueError`: If a value is out of range, or an option is none of the method's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method", default="ttt")
    first.add_argument("--preset")
    chosen = first.parse_known_args(argv)[0]
    if chosen.preset is not None and chosen.preset not in PRESETS:
        raise InputError(f"There is no preset {chosen.preset!r}. Pass one of {', '.join(PRESETS)}.")
    # an unknown method is refused by the parser, which knows its name
    method = METHODS.get(chosen.method, METHODS["ttt"])
    index = "" if "index" in method.unused else "--index INDEX "
    parser = _parser_for(method)(
        [kind, TestTimeTrainingArguments, *method.arguments.values()],  # type: ignore[list-item]
        prog=prog,
        usage=f"{prog or '%(prog)s'} --model MODEL {index}--dataset DATASET [--method METHOD] [options]",
        description=description,
        epilog="Every other field of transformers.TrainingArguments is accepted too; --NAME false unsets a flag. The "
        "options shown are those of the method: `--method METHOD --help` shows another's.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    if chosen.preset is not None:
        # what is no option of the method stays as it is: `reset_optimizer=False` would keep a second process away
        preset = PRESETS[chosen.preset].items()
        parser.set_defaults(**{name: value for name, value in preset if name not in method.unused})
    arguments, args, *own, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        raise InputError(f"{unknown[0]!r} is no option of the method {chosen.method}. `--help` shows them.")
    parsed = dict(zip(method.arguments, own, strict=True))
    _check_options({word.split("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}, parsed)
    return arguments, args, parsed


def _check_options(given: set[str], own: dict[str, Any]) -> None:
    """Refuse options that another one leaves without a meaning."""
    if {"learning_rate", "learning_rates"} <= given:
        raise InputError("Both `--learning_rate` and `--learning_rates` were passed. Pass one of them.")
    trainable = own["trainable"].trainable if "trainable" in own else "full"
    for name, kind in SIZES.items():
        if name in given and kind != trainable:
            raise InputError(f"`--{name}` is for `--trainable {kind}`, and that is {trainable}. Leave one out.")


def _parser_for(method: Method) -> type[HfArgumentParser]:
    """Make a parser that knows the options of one method only."""
    hidden = {item.name for item in fields(TrainingArguments)} - {*SHOWN}

    class Parser(HfArgumentParser):
        def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
            name = names[0].lstrip("-").removeprefix("no_")
            if name in method.unused:
                if not names[0].startswith("--no_"):
                    self.set_defaults(**{name: options.get("default")})
                return argparse.Action([], name)  # which nobody adds
            if name in hidden or names[0].startswith("--no_"):
                options["help"] = argparse.SUPPRESS
            if name == "index":
                options["required"] = True
            if name == "optim":
                options["metavar"] = "NAME"  # of forty
            return super().add_argument(*names, **options)

    return Parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)
