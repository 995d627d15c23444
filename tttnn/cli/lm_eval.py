"""The command that runs lm-evaluation-harness with a model that is adapted to each question."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tttnn.errors import InputError
from tttnn.files import write_json
from tttnn.helptext import Parser, asks_for_help


if TYPE_CHECKING:
    from tttnn.evaluation import HarnessResult


HELP = "run lm-evaluation-harness with a model that is adapted to each question"
DESCRIPTION = f"""{HELP[0].upper()}{HELP[1:]}.

The words after `tttnn lm-eval` are those of the program `lm-eval`; `tttnn lm-eval run --help` lists them. `--model` is
tttnn by default, and `--model_args` name the options of `tttnn generate`, with underscores:

  tttnn lm-eval --model_args pretrained=gpt2,index=my-index,method=ttt --tasks piqa --output_path runs/ttt

With `--output_path` samples are logged, and the results are shown without the items that have near-copies among their
neighbors, too. `tttnn lm-eval compare RUN [BASELINE]` shows them again, or against another run, with intervals."""


def add_lm_eval(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn lm-eval` to the list of commands; its words are those of another program."""
    commands.add_parser("lm-eval", help=HELP)


def lm_eval(argv: Sequence[str]) -> None:
    """Run `tttnn lm-eval` with the words after it."""
    words = [*argv]
    if words[:1] == ["compare"]:
        _compare(words[1:])
        return
    if not words or asks_for_help(words[:1]):
        parser = Parser(prog="tttnn lm-eval", usage="tttnn lm-eval [words of lm-eval]", description=DESCRIPTION)
        parser.parse_args(["--help"])  # shows it and exits
    # the import tells the harness of the model type, or the user that there is no harness
    from tttnn.evaluation import TestTimeLM, harness_results, read_harness_run  # noqa: F401, I001
    from lm_eval._cli import HarnessCLI

    names = [word.split("=")[0] for word in words]
    is_run = words[0] == "run" or words[0].startswith("-")
    if is_run and not {"--help", "-h"} & {*names}:
        words = words if words[0] == "run" else ["run", *words]
        if not {"--model", "-M"} & {*names}:
            words += ["--model", "tttnn"]
        if {"--output_path", "-o"} & {*names} and not {"--log_samples", "-s"} & {*names}:
            words.append("--log_samples")
    before, sys.argv = sys.argv, ["lm-eval", *words]  # the harness reads no others
    try:
        harness = HarnessCLI()
        arguments = harness.parse_args()
        harness.execute(arguments)
    finally:
        sys.argv = before
    if is_run and arguments.output_path:
        results = harness_results(read_harness_run(arguments.output_path))
        if any(result.without_near_copies for result in results):
            print("\nWithout the items that have near-copies among their neighbors:\n")
            _show(results)


def _compare(words: list[str]) -> None:
    """Show a run, or two against each other."""
    from tttnn.evaluation import harness_results, read_harness_run

    parser = Parser(
        prog="tttnn lm-eval compare",
        description="Show the results of lm-evaluation-harness with 95 % bootstrap intervals over items; with a "
        "baseline, those of the difference, item by item.",
    )
    parser.add_argument("run", metavar="RUN", help="What `--output_path` was.")
    parser.add_argument("baseline", metavar="BASELINE", nargs="?", help="The same of a run with the same items.")
    parser.add_argument("--output", metavar="FILE", help="JSON file to write the numbers to.")
    arguments = parser.parse_args(words)
    baseline = None if arguments.baseline is None else read_harness_run(arguments.baseline)
    results = harness_results(read_harness_run(arguments.run), baseline)
    _show(results)
    if arguments.output is not None:
        path = Path(arguments.output)
        if path.is_dir():
            raise InputError(f"'{path}' is a folder. Pass a file.")
        # NaN is not JSON
        content = json.loads(json.dumps([asdict(result) for result in results]), parse_constant=lambda _: None)
        write_json(path, {"run": arguments.run, "baseline": arguments.baseline, "results": content})


def _show(results: list["HarnessResult"]) -> None:
    """Print a table."""
    is_paired = any(result.baseline is not None for result in results)
    head = [
        "task",
        "metric",
        "items",
        *(["baseline", "run", "difference"] if is_paired else ["value"]),
        "95 % interval",
    ]
    rows = [head]
    for result in results:
        rows.append(_cells(result))
        if result.without_near_copies is not None:
            rows.append(_cells(result.without_near_copies, "  without near-copies"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    for row in rows:
        texts = zip(row[:2], widths, strict=False)
        numbers = zip(row[2:], widths[2:], strict=True)
        print("  ".join([*(f"{text:<{width}}" for text, width in texts), *(f"{n:>{w}}" for n, w in numbers)]))


def _cells(result: "HarnessResult", name: str | None = None) -> list[str]:
    """Write a result as the cells of a row."""
    low, high = result.interval
    values = [f"{result.value:.4f}"]
    if result.baseline is not None:
        values = [f"{result.baseline:.4f}", f"{result.value:.4f}", f"{result.value - result.baseline:+.4f}"]
    sign = "" if result.baseline is None else "+"
    interval = "-" if math.isnan(low) else f"{low:{sign}.4f} to {high:{sign}.4f}"
    return [name or result.task, "" if name else result.metric, str(result.num_items), *values, interval]
