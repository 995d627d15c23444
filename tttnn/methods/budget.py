"""One dial in the place of a method and its settings: what gains most within a budget, by a measured curve."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tttnn import adaptation
from tttnn.adaptation import CurveRow, Method, Tuning, read_tuning
from tttnn.errors import InputError
from tttnn.methods.speed import Speed, measure_speed


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tttnn.adaptation import TestTimeTrainingArguments


DEFAULT_CURVE = Path(__file__).with_name("budget.json")
GAINS = {"fast": 1 / 2, "balanced": 2 / 3, "best": 1.0}  # of the best gain, that a word asks for


class BudgetChoice(NamedTuple):
    """
    What was chosen for a budget.

    Args:
        method (`str`):
            A key of `METHODS`.
        settings (`dict[str, Any]`):
            Fields of `TestTimeTrainingArguments`.
        options (`dict[str, Any]`):
            The method's own options, by name.
        reason (`str`):
            What was chosen and why, in one line.
    """

    method: str
    settings: dict[str, Any]
    options: dict[str, Any]
    reason: str

    def check(self, method: Method, args: "TestTimeTrainingArguments") -> None:
        """
        Make sure that what overrides the choice leaves something of it.

        Args:
            method (`Method`):
                Made of the choice and of what overrides it.
            args (`TestTimeTrainingArguments`):
                Likewise.

        Raises:
            `ValueError`: If only the mixture was to use the neighbors, and there is none now.
        """
        if method.retrieves and not (method.trains or method.needs_neighbors(args)):
            raise InputError(
                f"`mix` is {args.mix!r}, and the budget chose {self.method} for a mixture that counts the neighbors: "
                f"nothing would be done with them. Leave `mix` out, or pass another budget. ({self.reason})"
            )


def parse_budget(budget: str | float) -> str | float:
    """
    Read a budget.

    Args:
        budget (`str` or `float`):
            Seconds per document, or `"fast"`, `"balanced"` or `"best"`.

    Returns:
        `str` or `float`: one of these words, or the seconds.

    Raises:
        `ValueError`: If it is neither.
    """
    if isinstance(budget, str) and budget in GAINS:
        return budget
    try:
        seconds = float(budget)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"`budget` is {budget!r}. Pass seconds per document, above 0, or one of {', '.join(GAINS)}.")
    return seconds


@cache
def default_curve() -> Tuning:
    """
    Read the curve that comes with the package.

    Returns:
        `Tuning`: of no model and no index in particular.
    """
    return read_tuning(DEFAULT_CURVE)


def choose_row(budget: str | float, rows: Sequence[CurveRow], prefix: CurveRow, speed: Speed) -> CurveRow:
    """
    Choose among the rows of a curve.

    Args:
        budget (`str` or `float`):
            Seconds per document: of the rows that fit, the one of the lowest bits per byte. Otherwise the cheapest row
            that has a part of the best row's gain: half of it (`"fast"`), two thirds (`"balanced"`) or all
            (`"best"`).
        rows (`Sequence[CurveRow]`):
            At least one.
        prefix (`CurveRow`):
            What gains are measured from.
        speed (`Speed`):
            Seconds for a token.

    Returns:
        `CurveRow`: one of `rows`; of equal ones the cheapest.

    Raises:
        `ValueError`: If no row fits.
    """
    by_cost = sorted(rows, key=speed.predict)

    def lowest(some: Iterable[CurveRow]) -> CurveRow:
        return min(some, key=lambda row: row.bits_per_byte)

    if isinstance(budget, str):
        best = prefix.bits_per_byte - lowest(by_cost).bits_per_byte
        enough = GAINS[budget] * best if best > 0 else best
        return next(row for row in by_cost if prefix.bits_per_byte - row.bits_per_byte >= enough)
    fitting = [row for row in by_cost if speed.predict(row) <= budget]
    if not fitting:
        raise InputError(
            f"`budget` is {budget:g} seconds per document, and the cheapest choice, {_name(by_cost[0])}, takes "
            f"{speed.predict(by_cost[0]):.3g} here. Pass at least that, or choose another model or device."
        )
    return lowest(fitting)


def choose_budget(
    budget: str | float,
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    args: "TestTimeTrainingArguments | None" = None,
    curve: Tuning | str | Path | None = None,
    methods: Sequence[str] | None = None,
) -> BudgetChoice:
    """
    Choose a method and its settings by a budget.

    The costs of a choice are counted in tokens that are read and trained for a document. A short probe of the model
    says how long a token takes here. Retrieval, and the score before that an evaluation adds, are not counted.

    Args:
        budget (`str` or `float`):
            Seconds per document, or `"fast"`, `"balanced"` or `"best"` (see `choose_row`).
        model (`PreTrainedModel`):
            The model.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args (`TestTimeTrainingArguments`, *optional*):
            How it will be run: device and precision.
        curve (`Tuning`, `str` or `Path`, *optional*):
            What was measured, or the file of `tttnn tune`. By default the file that `args` are from, else the curve
            that comes with the package.
        methods (`Sequence[str]`, *optional*):
            Choose among these. By default among all of the curve that need nothing which you must pass, as experts do.

    Returns:
        `BudgetChoice`: the method, its settings, and why.

    Raises:
        `ValueError`: If the budget is none, nothing fits it, the curve has no row of these methods, or it was measured
            with another model.
    """
    from tttnn.methods import METHODS  # which imports this module

    budget = parse_budget(budget)
    args = adaptation.TestTimeTrainingArguments() if args is None else args
    curve = _as_tuning(curve, args)
    curve.check(model.config._name_or_path, None)
    if args.prompt != "context":
        raise InputError(
            f"`budget` is {budget!r} and `prompt` is {args.prompt!r}: curves are measured with the prompt in context, "
            "and say nothing about scores without it. Pass `prompt='context'` (and `query='prefix'`), or no budget."
        )
    if methods is None:
        methods = [name for name, method in METHODS.items() if not method.required_options()]
    rows = [row for row in curve.curve if row.method in METHODS and row.method in methods]
    if not rows:
        raise InputError(
            f"The curve of '{curve.name}' has no row of the method {', '.join(methods)}, but of "
            f"{', '.join(dict.fromkeys(row.method for row in curve.curve))}. Choose one of these, or no budget."
        )
    for row in rows:
        _own_options(row.method, row.options, curve)
    speed = measure_speed(model, processing_class, args)
    row = choose_row(budget, rows, curve.prefix, speed)
    return BudgetChoice(row.method, row.settings, row.options, _reason(budget, row, curve, speed))


def _taking(names: set[str]) -> list[str]:
    """List the methods that use all of these arguments: one that takes no step has no use for a learning rate."""
    from tttnn.methods import METHODS

    of_steps, of_retrieval = (
        {item.name for group in groups for item in fields(group)} & names
        for groups in (
            (adaptation.StepArguments, adaptation.NeighborStepArguments),
            (adaptation.RetrievalArguments, adaptation.NeighborStepArguments),
        )
    )
    return [
        name
        for name, kind in METHODS.items()
        if not kind.required_options() and (kind.trains or not of_steps) and (kind.retrieves or not of_retrieval)
    ]


def _as_tuning(curve: Tuning | str | Path | None, args: "TestTimeTrainingArguments") -> Tuning:
    """Give the curve that is chosen from."""
    return read_tuning(curve) if isinstance(curve, str | Path) else curve or args.tuning or default_curve()


def _own_options(method: str, options: dict[str, Any], curve: Tuning) -> dict[str, Any]:
    """Make the arguments of a method of its own options, which are from a file and may be anything."""
    from tttnn.methods import METHODS

    groups = METHODS[method].own_options
    group_of = {item.name: name for name, group in groups.items() for item in fields(group)}
    values: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        if name not in group_of:
            raise InputError(
                f"'{curve.name}' has {name!r}, which is no option of the method {method}. Run `tttnn tune` again."
            )
        values.setdefault(group_of[name], {})[name] = value
    try:
        return {name: groups[name](**options) for name, options in values.items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"'{curve.name}' has an option that cannot be: {error} Run `tttnn tune` again.") from None


def _reason(budget: str | float, row: CurveRow, curve: Tuning, speed: Speed) -> str:
    rules = {
        "fast": "the cheapest with half of the best gain",
        "balanced": "the cheapest with two thirds of the best gain",
        "best": "the lowest bits per byte",
    }
    rule = rules[budget] if isinstance(budget, str) else f"the best that fits {budget:g} seconds"
    origin = "the default curve" if curve is default_curve() else f"'{curve.name}'"
    return (
        f"Budget {budget if isinstance(budget, str) else f'{budget:g}'}: {_name(row)}, {rule} in {origin}. "
        f"Predicted: {speed.predict(row):.3g} seconds in the model per document."
    )


def _name(row: CurveRow) -> str:
    """Name a row by its method and settings."""
    shown = {name: value for name, value in (row.settings | row.options).items() if value not in (None, "none")}
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"{row.method} ({settings})" if settings else row.method


def with_budget(
    budget: str | float,
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    args: "TestTimeTrainingArguments | None" = None,
    *,
    curve: Tuning | str | Path | None = None,
    method: str | None = None,
    **overrides: Any,
) -> "tuple[Method, TestTimeTrainingArguments]":
    """
    Make a method and arguments for a trainer by a budget.

    Args:
        budget (`str` or `float`):
            Seconds per document, or `"fast"`, `"balanced"` or `"best"` (see `choose_row`).
        model (`PreTrainedModel`):
            The model.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args (`TestTimeTrainingArguments`, *optional*):
            Everything that the budget does not set.
        curve (`Tuning`, `str` or `Path`, *optional*):
            As in `choose_budget`.
        method (`str`, *optional*):
            Choose among the settings of this method. `TestTimeTrainer.adapt` takes steps: for it pass `"ttt"`.
        overrides (*optional*):
            Fields of the arguments to set otherwise than the budget does. As on the command line, they leave out the
            methods that do not take them: a learning rate those that take no step.

    Returns:
        `tuple[Method, TestTimeTrainingArguments]`: for `TestTimeTrainer(method=..., args=...)`.

    Raises:
        `ValueError`: As `choose_budget`; or if a value is out of range, or leaves nothing of the choice.

    Example:

    ```python
    from tttnn.methods import with_budget

    method, args = with_budget("balanced", model, tokenizer, num_neighbors=2)
    ```
    """
    from tttnn.methods import METHODS

    args = adaptation.TestTimeTrainingArguments() if args is None else args
    curve = _as_tuning(curve, args)
    before, args = args, replace(args, **overrides)
    if method in METHODS and (required := METHODS[method].required_options()):
        raise InputError(
            f"The method '{method}' needs `{required[0]}`, which a budget does not know. Make it yourself, or use "
            "`tttnn evaluate --budget`."
        )
    changed = {name for name, value in overrides.items() if value != getattr(before, name)}
    methods = _taking(changed) if method is None else [method]
    choice = choose_budget(budget, model, processing_class, args, curve, methods)
    chosen = replace(args, **{**choice.settings, **overrides})
    # a trainer refuses another index than the curve's
    chosen.tuning = None if curve is default_curve() else curve
    made = METHODS[choice.method](**_own_options(choice.method, choice.options, curve))
    choice.check(made, chosen)
    return made, chosen
