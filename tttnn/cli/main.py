"""The command `tttnn`: build an index, look into it, evaluate a model with it, report."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError

from tttnn.cli.index import add, build_index, import_tttlm, pull, push
from tttnn.errors import HubError, InputError, StateError


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the program's name. By default those of the process.

    Returns:
        `int`: 0, or 1 where the input is at fault; then the error is on standard error.
    """
    commands = {
        "build-index": build_index,
        "add": add,
        "push": push,
        "pull": pull,
        "import-tttlm": import_tttlm,
        "retrieve": retrieve,
        "evaluate": evaluate,
        "report": report,
    }
    parser = argparse.ArgumentParser(
        prog="tttnn",
        description="Test-time training on nearest neighbors.",
        epilog="commands:\n"
        "  build-index   embed and index a corpus\n"
        "  add           append documents to an index\n"
        "  push          upload an index to the Hub\n"
        "  pull          download an index from the Hub, or some of its shards\n"
        "  import-tttlm  make an index of the files that the method's authors published\n"
        "  retrieve      show the nearest documents of a text\n"
        "  evaluate      adapt a model to each test document and report bits per byte\n"
        "  report        compare runs: a page with tables and pictures, CSV, JSON, a model card's section\n\n"
        "`tttnn COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tttnn {version('tttnn')}")
    parser.add_argument("command", choices=commands, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    parsed = parser.parse_args(argv)
    try:
        commands[parsed.command](parsed.arguments)
    except (InputError, StateError, HubError, OSError, ImportError, SafetensorError) as error:
        print(f"tttnn {parsed.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def retrieve(argv: Sequence[str]) -> None:
    """
    Show the nearest documents of a text.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    parser = argparse.ArgumentParser(
        prog="tttnn retrieve",
        description="Show the nearest documents of a text: squared L2 distance, id, and how each begins.",
    )
    parser.add_argument("index", help="folder or Hub id of an index")
    parser.add_argument("text", help="the query")
    parser.add_argument("--top-k", type=int, default=5, help="documents to show (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit of the index")
    parser.add_argument("--embedder", help="embedder of the index, where it now has another name or path")
    parser.add_argument("--shards", type=int, nargs="+", help="shards to fetch and search (default: all)")
    parser.add_argument(
        "--texts", choices=("local", "remote"), default="local", help="remote: leave the texts on the Hub"
    )
    parser.add_argument("--json", action="store_true", help="print whole neighbors, a JSON object a line")
    arguments = parser.parse_args(argv)

    from tttnn.retrieval.retriever import NeighborRetriever

    retriever = NeighborRetriever.from_pretrained(
        arguments.index,
        revision=arguments.revision,
        shards=arguments.shards,
        texts=arguments.texts,
        embedder=arguments.embedder,
    )
    for neighbor in retriever.retrieve([arguments.text], arguments.top_k)[0]:
        if arguments.json:
            print(json.dumps(asdict(neighbor), ensure_ascii=False, default=str))
        else:
            begin = " ".join(neighbor.text.split())
            print(f"{neighbor.distance:8.4f}  {neighbor.metadata['id']}\n          {begin[:100]}")


def evaluate(argv: Sequence[str]) -> None:
    """
    Adapt a model to each test document and report bits per byte before and after.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    from tttnn.documents import Document, read_documents
    from tttnn.evaluation import EvaluateArguments, evaluate_documents, parse_evaluation
    from tttnn.report import document_table, import_figure, plot_curve, pooled_line

    evaluation = parse_evaluation(
        EvaluateArguments,
        argv,
        prog="tttnn evaluate",
        description="Adapt a model to each test document by one step on each of its neighbors, or by another\n"
        "method, and report bits per byte before and after. Every finished document goes into a journal in\n"
        "the output folder; started again, an interrupted run goes on. Several processes: torchrun\n"
        "--nproc_per_node N -m tttnn evaluate ...",
    )
    source, index, args = evaluation.source, evaluation.index, evaluation.args
    if args.score_every_neighbor:
        import_figure()  # what is missing for the picture is said before the work, not after it

    def read(names: str | list[str], limit: int | None) -> list[Document]:
        columns = (args.text_column, source.id_column)
        return list(read_documents(names, *columns, source.split, source.dataset_revision, limit=limit))

    chosen_on = evaluation.validation
    if chosen_on.validation_limit is not None and not chosen_on.validation:
        raise InputError("`--validation-limit` was passed without `--validation`. Name the validation documents.")
    documents = read(source.dataset, source.limit)
    validation = read(chosen_on.validation, chosen_on.validation_limit) if chosen_on.validation else []
    for outcome in evaluate_documents(evaluation, documents, validation):
        if not outcome.is_main:
            continue
        if index is not None and len(index.index_fraction or []) > 1:
            print(f"{outcome.name}:")
        print(document_table(outcome.records) if len(documents) <= 100 else pooled_line(outcome.records))
        if args.score_every_neighbor:
            picture = outcome.name.replace("eval", "curve", 1) + ".png"
            print(plot_curve(outcome.records, Path(args.output_dir or ".") / picture))


def report(argv: Sequence[str]) -> None:
    """
    Write a report of runs.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    parser = argparse.ArgumentParser(
        prog="tttnn report",
        description="Read the journals of runs, and write a report of them to a folder: report.md and report.html "
        "with tables and pictures, results.csv, results.json, and model-card.md, a section for a model card.",
    )
    parser.add_argument("run", nargs="+", help="folders that `tttnn evaluate` or examples/pile_eval.py wrote to")
    parser.add_argument("--output", default="report", help="folder to write (default: %(default)s)")
    parser.add_argument("--baseline", metavar="LABEL", help="run to compare with, by its label (default: the first)")
    parser.add_argument(
        "--group_by",
        "--group-by",
        metavar="FIELD",
        help="field of the documents to group by (default: tasks of the Pile, where all have one)",
    )
    parser.add_argument(
        "--num_samples",
        "--num-samples",
        type=int,
        default=10_000,
        help="draws of the paired bootstrap (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    arguments = parser.parse_args(argv)

    from tttnn.report import write_report
    from tttnn.report.intervals import Bootstrap

    bootstrap = Bootstrap(arguments.num_samples, arguments.seed)
    for path in write_report(arguments.run, arguments.output, arguments.baseline, arguments.group_by, bootstrap):
        print(path)
