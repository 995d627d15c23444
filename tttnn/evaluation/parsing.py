"""A command line read as an evaluation: the options of a method, on the base of a preset or of a budget's choice."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields, make_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

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
from tttnn.evaluation.options import (
    Budget,
    EvaluateArguments,
    Evaluation,
    IndexArguments,
    Inputs,
    RateArguments,
    ValidationArguments,
)
from tttnn.helptext import OptionParser, asks_for_help, dashed, misspelled, suggestion
from tttnn.methods import METHODS, BudgetChoice, Method, default_curve, parse_budget


if TYPE_CHECKING:
    from tttnn.adaptation import TestTimeTrainingArguments


def parse_evaluation(
    kind: type[Inputs],
    argv: Sequence[str] | None,
    prog: str | None = None,
    description: str = "",
    *,
    words: list[str] | None = None,
) -> Evaluation[Inputs]:
    """
    Parse what is evaluated and how, on the base of a preset if one is named.

    Args:
        kind (`type`):
            A dataclass derived from `ModelArguments`, such as `EvaluateArguments`. Options for scoring are shown if it
            is one derived from that.
        argv (`Sequence[str]`, *optional*):
            The arguments. By default those of the process.
        prog (`str`, *optional*):
            Name in the help.
        description (`str`, *optional*, defaults to `""`):
            Begins the help.
        words (`list[str]`, *optional*):
            Takes the words that belong to no option. By default there may be none.

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
    scores = issubclass(kind, EvaluateArguments)
    # a published protocol has the precision of its authors, float32; a probe is worth its seconds for many documents
    is_published = chosen.preset is not None and tuning is None
    if scores and not is_published and {word.split("=")[0] for word in argv}.isdisjoint({"--bf16", "--fp16"}):
        settings = {"precision": "auto", **settings}
    # the help hides the other options of `Trainer`, which takes seconds to import
    shown = [ScoringArguments, RunArguments] if scores else []
    groups = partial(_groups, kind, shown, hides_others=not asks_for_help(argv))
    parse = partial(
        _parse, kind, groups, argv, prog=prog, description=description, settings=settings, tuning=tuning, words=words
    )
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
    # an option of some methods only, such as `--trainable`, leaves the others out; so does one that is missing
    passed = {word.split("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}
    fitting = [
        name
        for name in names
        if name in METHODS
        and passed.issuperset(METHODS[name].required_options())
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
    words: list[str] | None,
    with_index: bool = False,
) -> Evaluation[Inputs]:
    """Parse the options of a method, with `settings` in the place of defaults."""
    # an unknown method is refused by the parser, which knows its name
    method = METHODS.get(name, METHODS["ttt"])
    groups = groups_of(method, with_index)
    index = "--index INDEX " if method.retrieves else ""
    target = "--dataset DATASET" if issubclass(kind, EvaluateArguments) else "[PROMPT]"
    parser = OptionParser(
        groups,
        prog=prog,
        usage=f"{prog or '%(prog)s'} --model MODEL {index}{target} [--method METHOD] [options]",
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
    parsed, rest = parser.parse_groups(argv if words is None else parser.with_values(argv))
    if words is not None:
        words[:] = [word for word in rest if word != "--"]
    elif rest:
        raise InputError(f"{rest[0]!r} belongs to no option. Put a value after its option.")
    _check_options({word.split("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}, parsed)
    rates = parsed.get(RateArguments, RateArguments()).learning_rates or []
    validation = parsed.get(ValidationArguments, ValidationArguments())
    own = {"trainable": TrainableArguments()} | {name: parsed[item] for name, item in method.own_options.items()}
    args = _arguments(parsed)
    args.tuning = tuning
    return Evaluation(parsed[kind], parsed.get(IndexArguments), rates, validation, args, method(**own))


def _groups(
    kind: type, shown: list[type], method: type[Method], with_index: bool, *, hides_others: bool
) -> list[type]:
    """List the dataclasses of a method's options; `with_index` where another may be chosen, which retrieves."""
    index = [IndexArguments] * (method.retrieves or with_index)
    choice = ([RateArguments] * method.trains + [ValidationArguments] * (method.trains or method.chooses)) * bool(
        shown
    )
    groups = [kind, *index, *method.options(), *(choice if shown else []), *shown]
    # the help does without the other options of `Trainer`, which takes seconds to import
    return [*groups, _trainer_options(groups)] if hides_others else groups


def _trainer_options(groups: list[type]) -> type:
    """Make a dataclass of the trainer's arguments that no dataclass of options has; `--help` hides them."""
    from tttnn.adaptation import TestTimeTrainingArguments

    # what is no option of the method is none at all
    of_methods = (RetrievalArguments, StepArguments, NeighborStepArguments)
    names = {item.name for group in (*groups, *of_methods) for item in fields(group)}
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
