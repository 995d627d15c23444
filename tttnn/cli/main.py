"""The command `tttnn`: it parses, runs a command, and tells what is wrong with the input in one line."""

import io
import os
import select
import sys
from collections.abc import Sequence
from importlib.metadata import version

from safetensors import SafetensorError

from tttnn.cli.build import add_add, add_build_index, add_import_tttlm
from tttnn.cli.cluster import add_cluster
from tttnn.cli.demo import add_demo, demo
from tttnn.cli.evaluate import add_evaluate, add_tune, evaluate
from tttnn.cli.experts import add_train_experts
from tttnn.cli.generate import add_generate, generate
from tttnn.cli.index import add_info, add_pull, add_push, add_retrieve
from tttnn.cli.lm_eval import add_lm_eval, lm_eval
from tttnn.cli.report import add_report
from tttnn.cli.serve import add_serve, serve
from tttnn.errors import InputError, StateError
from tttnn.helptext import Parser, dashed, misspelled, suggestion


# in the order of the help
COMMANDS = (
    *(add_build_index, add_add, add_import_tttlm),
    *(add_push, add_pull, add_info, add_retrieve, add_cluster),
    *(add_tune, add_train_experts, add_evaluate, add_report, add_generate, add_serve, add_demo, add_lm_eval),
)

# whose options depend on the method, or are those of another program
OF_METHOD = {"evaluate": evaluate, "generate": generate, "serve": serve, "demo": demo, "lm-eval": lm_eval}

# the Hub's errors, ours and those of huggingface_hub, are OSErrors
EXPECTED = (InputError, StateError, OSError, ImportError, SafetensorError)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the program's name. By default those of the process. Names of options may have underscores
            instead of dashes.

    Returns:
        `int`: 0; 1 if the input is at fault, with the error on standard error; 130 after Ctrl-C; 141 if the reader of
        the output has closed it.

    Raises:
        `SystemExit`: With 2 after a wrong use, and with 0 after `--help` and `--version`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # where a letter cannot be written, its number is
        sys.stdout.reconfigure(errors="backslashreplace")
    raw = [*(sys.argv[1:] if argv is None else argv)]
    # lm-evaluation-harness has names with underscores
    words = raw if raw[:1] == ["lm-eval"] else dashed(raw)
    command = " ".join(["tttnn", *words[:1]])
    try:
        try:
            _run(words)
        except SystemExit:
            sys.stdout.flush()  # the help
            raise
        sys.stdout.flush()  # now, while a closed pipe can be handled
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 141
        print(f"{command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _run(words: list[str]) -> None:
    """Parse the words and run their command."""
    parser = Parser(
        prog="tttnn",
        description="Test-time training on nearest neighbors.",
        epilog="`tttnn COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"tttnn {version('tttnn')}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    if words and words[0] in commands.choices:
        known = commands.choices[words[0]]
        # another parser reads these options, which depend on the method
        run = OF_METHOD.get(words[0])
        if run is not None:
            run(words[1:])
            return
        options = known._option_string_actions
        # argparse would first miss the option that was misspelled
        if (word := misspelled(words[1:], options)) is not None:
            known.error(f"there is no option `{word}`.{suggestion(word, options)}")
    elif words and not words[0].startswith("-"):
        parser.error(f"there is no command `{words[0]}`.{suggestion(words[0], commands.choices)}")
    arguments = parser.parse_args(words)
    arguments.run(arguments)


def _output_is_closed() -> bool:
    """Whether the reader of standard output is gone, as after `| head`; what is still buffered is then thrown away."""
    output = select.poll()
    output.register(sys.stdout, 0)  # a pipe without a reader is reported in any case
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
