"""The command that shows the method on a page."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tttnn.errors import InputError
from tttnn.evaluation import ModelArguments
from tttnn.helptext import Parser


DESCRIPTION = (
    "Show the method on a page in the browser: a text, its neighbors, what each token gained, and what the model says "
    "before and after. It listens on this machine only, unless --host says otherwise."
)
LENGTH = 4000  # characters of an example


@dataclass(kw_only=True)
class DemoArguments(ModelArguments):
    """What `tttnn demo` shows, and where."""

    examples: list[str] | None = field(default=None, metadata={"help": "Text files to choose from on the page."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for all networks."})
    port: int = field(default=7860, metadata={"help": "Port to listen on."})
    max_new_tokens: int = field(default=60, metadata={"help": "Tokens to generate before and after; 0: none."})
    mix: str = field(default="none", metadata={"help": "As in `tttnn evaluate`: none, cache, unadapted or both."})
    max_length: int = field(default=256, metadata={"help": "Tokens in a training chunk."})
    seed: int = field(default=42, metadata={"help": "Seed of the steps."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision with bfloat16."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})


def add_demo(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn demo` to the list of commands; its options depend on the method, and have another parser."""
    commands.add_parser("demo", help="show the method on a page in the browser")


def demo(argv: Sequence[str]) -> None:
    """Run `tttnn demo` with the words after it."""
    from tttnn.evaluation import parse_evaluation

    evaluation = parse_evaluation(DemoArguments, argv, prog="tttnn demo", description=DESCRIPTION)
    inputs = evaluation.inputs
    examples = [_read(path) for path in inputs.examples or []]

    from tttnn.evaluation import load_trainer
    from tttnn.generation import make_demo

    trainer = load_trainer(evaluation)
    # after the budget, which may have chosen the rest
    trainer.args.save_tokens = trainer.args.score_every_neighbor = True
    page = make_demo(trainer, examples, inputs.max_new_tokens)
    page.launch(server_name=inputs.host, server_port=inputs.port)


def _read(path: str) -> str:
    """Read the beginning of an example."""
    try:
        return Path(path).read_text(encoding="utf-8")[:LENGTH]
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text ({error}). Pass text files as `--examples`.") from error
