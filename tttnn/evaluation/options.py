"""The options of an evaluation: what is evaluated on what, and, in dataclasses by use, how."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

from tttnn.adaptation import (
    SIZES,
    NeighborStepArguments,
    RetrievalArguments,
    RunArguments,
    ScoringArguments,
    StepArguments,
    TrainableArguments,
    Tuning,
    preset_settings,
)
from tttnn.errors import InputError
from tttnn.helptext import OptionParser, asks_for_help, dashed, misspelled, suggestion
from tttnn.methods import METHODS, BudgetChoice, Method, default_curve, parse_budget


if TYPE_CHECKING:
    from tttnn.adaptation import TestTimeTrainingArguments


DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class EvaluateArguments:
    """What `tttnn evaluate` evaluates on what."""

    model: str = field(metadata={"help": "Hub id or folder of a causal language model."})
    dataset: str = field(
        metadata={
            "help": "Test documents: a file of rows (.jsonl, .json, .csv, .tsv or .parquet), another file (a text), "
            "a folder of files, or the id of a Hub data set."
        }
    )
    method: str = field(
        default="ttt",
        metadata={
            "help": "; ".join(f"{name}: {method.description}" for name, method in METHODS.items()) + ".",
            "choices": list(METHODS),
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Start from a published setting, tttlm, or from those of a file of `tttnn tune`, FILE.json. Other "
            "options override them."
        },
    )
    budget: str | None = field(
        default=None,
        metadata={
            "help": "Choose the method and its settings when the model is loaded: SECONDS in the model per document, "
            "without retrieval and the score before; fast: the cheapest with half of the best gain; balanced: with "
            "two thirds; best: the best. By the curve of --preset FILE.json, or a default one. --method and other "
            "options override it, and leave out the methods that do not take them."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Evaluate only the first N documents."})
    split: str = field(default="test", metadata={"help": "Split of a Hub data set."})
    id_column: str | None = field(default=None, metadata={"help": "Column with the documents' ids."})
    dtype: str = field(
        default="float32",
        metadata={"help": "Precision of the weights: float32, or bfloat16 or float16, which learn less."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the Hub data set `--dataset`."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub data set `--dataset`. Default: its own."}
    )

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"`dtype` is {self.dtype!r}. Pass one of {', '.join(DTYPES)}.")
        if self.method not in METHODS:
            raise InputError(f"`method` is {self.method!r}. Pass one of {', '.join(METHODS)}.")


@dataclass
class IndexArguments:
    """In which index a method that retrieves finds its neighbors."""

    index: str = field(metadata={"help": "Hub id or folder of an index (see `tttnn build-index`)."})
    index_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the index."})
    index_shards: list[int] | None = field(
        default=None, metadata={"help": "Numbers of the shards to fetch and search: 0 3. Default: all."}
    )
    index_texts: str = field(
        default="local",
        metadata={"help": "remote: leave the texts on the Hub, and fetch those of the neighbors only."},
    )
    index_fraction: list[float] | None = field(
        default=None,
        metadata={"help": "Evaluate with random parts of the index, one after another: 0.01 0.1 0.5 1.0."},
    )
    passage_length: int | None = field(
        default=None,
        metadata={
            "help": "Use the best passage, of at most N tokens of the embedder, of each document that is found. "
            "Default: whole documents."
        },
    )
    embedder: str | None = field(
        default=None, metadata={"help": "Embedder of the index, if it now has another name or path."}
    )
    trust_index: bool = field(
        default=False, metadata={"help": "Open an index of a Faiss factory that was built elsewhere."}
    )


@dataclass
class RateArguments:
    """The learning rates of a method that trains."""

    learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Learning rates to choose from on the validation documents."}
    )

    def __post_init__(self) -> None:
        for rate in self.learning_rates or []:
            if not 0 < rate < math.inf:
                raise InputError(f"`learning_rates` has {rate}. Pass rates above 0.")


@dataclass
class ValidationArguments:
    """On which documents a method with something to choose chooses it."""

    validation: list[str] | None = field(
        default=None, metadata={"help": "Documents on which settings are chosen; none may be a test document."}
    )
    validation_limit: int | None = field(default=None, metadata={"help": "Choose on at most N of them."})


Inputs = TypeVar("Inputs", bound=EvaluateArguments)


@dataclass(frozen=True)
class Budget:
    """
    A choice that is open until the model is loaded.

    Args:
        value (`str` or `float`):
            Seconds per document, or one of the words of `parse_budget`.
        curve (`Tuning`):
            What is chosen from.
        methods (`list[str]`):
            Methods that take all options that were passed.
        settle (`Callable[[BudgetChoice], Evaluation]`):
            Makes the evaluation of a choice; options that were passed override its settings.
    """

    value: str | float
    curve: Tuning
    methods: list[str]
    settle: "Callable[[BudgetChoice], Evaluation[Any]]"


@dataclass(frozen=True)
class Evaluation(Generic[Inputs]):
    """
    What is evaluated, on what, and how.

    Args:
        inputs (`EvaluateArguments`):
            Model and test documents.
        index (`IndexArguments`, *optional*):
            The index, for a method that retrieves.
        rates (`list[float]`):
            Learning rates to choose from.
        validation (`ValidationArguments`):
            Where the validation documents are.
        args (`TestTimeTrainingArguments`):
            The trainer's arguments.
        method (`Method`):
            The method, with its own options.
        budget (`Budget`, *optional*):
            What chooses the method and its settings when the model is loaded; until then `method` is one of those it
            may choose.
    """

    inputs: Inputs
    index: IndexArguments | None
    rates: list[float]
    validation: ValidationArguments
    args: "TestTimeTrainingArguments"
    method: Method
    budget: Budget | None = None


def parse_evaluation(
    kind: type[Inputs], argv: Sequence[str] | None, prog: str | None = None, description: str = ""
) -> Evaluation[Inputs]:
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
        `Evaluation`: the options, in dataclasses by use, and the method; with `--budget`, which needs the model, what
        settles them.

    Raises:
        `ValueError`: If a value is out of range, or an option is none of the method's.
    """
    argv = dashed(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    first.add_argument("--preset")
    first.add_argument("--budget")
    chosen = first.parse_known_args(argv)[0]
    settings, tuning = ({}, None) if chosen.preset is None else preset_settings(chosen.preset)
    # a published protocol has the precision of its authors, float32
    is_published = chosen.preset is not None and tuning is None
    if not is_published and {word.split("=")[0] for word in argv}.isdisjoint({"--bf16", "--fp16"}):
        settings = {"precision": "auto", **settings}
    # the help hides the other options of `Trainer`, which takes seconds to import
    others = [] if asks_for_help(argv) else [_trainer_options()]
    groups = partial(_groups, kind, others)
    parse = partial(_parse, kind, groups, argv, prog=prog, description=description, settings=settings, tuning=tuning)
    if chosen.budget is None:
        return parse(chosen.method or "ttt")
    value = parse_budget(chosen.budget)
    if chosen.preset is not None and tuning is None:
        raise InputError(
            f"`--budget` chooses settings, and `--preset {chosen.preset}` is published ones. Pass one of them, or a "
            "file of `tttnn tune` as the preset."
        )
    curve = tuning or default_curve()
    names = [chosen.method] if chosen.method else [*dict.fromkeys(row.method for row in curve.curve)]
    with_index = any(METHODS[name].retrieves for name in names if name in METHODS)
    # an option of some methods only, such as `--trainable`, leaves the others out
    fitting = [
        name
        for name in names
        if name in METHODS
        and misspelled(argv, OptionParser(groups(METHODS[name], with_index))._option_string_actions) is None
    ]
    evaluation = parse((fitting or names)[0], with_index=with_index)
    return replace(evaluation, budget=Budget(value, curve, fitting, partial(_settle, parse, with_index, settings)))


def _settle(
    parse: Callable[..., Evaluation[Inputs]], with_index: bool, settings: dict[str, Any], choice: BudgetChoice
) -> Evaluation[Inputs]:
    """Parse the options again with what a budget chose as defaults."""
    defaults = {**settings, **choice.settings, **choice.options, "method": choice.method}
    evaluation = parse(choice.method, with_index=with_index, settings=defaults)
    choice.check(evaluation.method, evaluation.args)
    return evaluation if evaluation.method.retrieves else replace(evaluation, index=None)


def _parse(
    kind: type[Inputs],
    groups_of: Callable[[type[Method], bool], list[type]],
    argv: list[str],
    name: str,
    prog: str | None,
    description: str,
    settings: dict[str, Any],
    tuning: Tuning | None,
    with_index: bool = False,
) -> Evaluation[Inputs]:
    """Parse the options of a method, with `settings` in the place of defaults."""
    # an unknown method is refused by the parser, which knows its name
    method = METHODS.get(name, METHODS["ttt"])
    groups = groups_of(method, with_index)
    index = "--index INDEX " if method.retrieves else ""
    parser = OptionParser(
        groups,
        prog=prog,
        usage=f"{prog or '%(prog)s'} --model MODEL {index}--dataset DATASET [--method METHOD] [options]",
        description=description,
        epilog="Every other field of transformers.TrainingArguments is accepted too; --NAME false turns a flag off. "
        "The options shown are those of the method: `--method METHOD --help` shows another's.",
    )
    # what is no option of the method stays as it is: `reset_optimizer=False` would keep a second process away
    names = {item.name for group in groups for item in fields(group)}
    parser.set_defaults(**{name: value for name, value in settings.items() if name in names})
    if asks_for_help(argv):
        parser.parse_args(argv)  # shows it and exits
    unknown = misspelled(argv, parser._option_string_actions)
    if unknown is not None:
        hint = suggestion(unknown, parser._option_string_actions)
        raise InputError(f"{unknown!r} is no option of the method {name}.{hint} `--help` shows its options.")
    parsed, rest = parser.parse_groups(argv)
    if rest:
        raise InputError(f"{rest[0]!r} belongs to no option. Put a value after its option.")
    _check_options({word.split("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}, parsed)
    rates = parsed.get(RateArguments, RateArguments()).learning_rates or []
    validation = parsed.get(ValidationArguments, ValidationArguments())
    own = {"trainable": TrainableArguments()} | {name: parsed[item] for name, item in method.own_options.items()}
    args = _arguments(parsed)
    args.tuning = tuning
    return Evaluation(parsed[kind], parsed.get(IndexArguments), rates, validation, args, method(**own))


def _groups(kind: type, others: list[type], method: type[Method], with_index: bool) -> list[type]:
    """List the dataclasses of a method's options; `with_index` where another may be chosen, which retrieves."""
    index = [IndexArguments] * (method.retrieves or with_index)
    choice = [RateArguments] * method.trains + [ValidationArguments] * (method.trains or method.chooses)
    return [kind, *index, *method.options(), *choice, ScoringArguments, RunArguments, *others]


def _trainer_options() -> type:
    """Make a dataclass of the fields of `TrainingArguments` that no other dataclass here has; `--help` hides them."""
    from tttnn.adaptation import TestTimeTrainingArguments

    shown = (RetrievalArguments, StepArguments, NeighborStepArguments, ScoringArguments, RunArguments)
    names = {item.name for group in shown for item in fields(group)}
    types = get_type_hints(TestTimeTrainingArguments)
    hidden: list[Any] = []
    for item in fields(TestTimeTrainingArguments):
        if item.init and item.name not in names:
            default: Any = {"default": item.default}
            if item.default is MISSING:
                default = {"default_factory": item.default_factory}
            hidden.append((item.name, types[item.name], field(metadata={"help": argparse.SUPPRESS}, **default)))
    return make_dataclass("TrainerOptions", hidden)


def _arguments(parsed: dict[type, Any]) -> "TestTimeTrainingArguments":
    """Make the trainer's arguments of all dataclasses that hold fields of them."""
    from tttnn.adaptation import TestTimeTrainingArguments

    names = {item.name for item in fields(TestTimeTrainingArguments)}
    values = {name: value for group in parsed.values() for name, value in vars(group).items() if name in names}
    try:
        return TestTimeTrainingArguments(**values)
    except (ValueError, ImportError) as error:  # of transformers, which names the field
        raise InputError(str(error)) from error


def _check_options(names: set[str], parsed: dict[type, Any]) -> None:
    """Refuse options that another one leaves without a meaning."""
    if {"learning_rate", "learning_rates"} <= names:
        raise InputError("Both `--learning-rate` and `--learning-rates` were passed. Pass one of them.")
    trainable = parsed.get(TrainableArguments, TrainableArguments()).trainable
    for name, kind in SIZES.items():
        if name in names and kind != trainable:
            option = name.replace("_", "-")
            raise InputError(f"`--{option}` is for `--trainable {kind}`, and that is {trainable}. Leave one out.")
