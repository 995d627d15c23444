"""The command that compares runs."""

import argparse

from tttnn.helptext import Parser


def add_report(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn report`."""
    parser = commands.add_parser(
        "report",
        help="compare runs: tables, pictures, CSV, JSON and a section for a model card",
        description="Read the journals of runs and write a report to a folder: report.md and report.html with tables "
        "and pictures, results.csv, results.json, and model-card.md, a section for a model card.",
    )
    parser.set_defaults(run=_report)
    parser.add_argument("run_folder", nargs="+", metavar="RUN", help="folder that an evaluation wrote to")
    parser.add_argument("--output", default="report", help="folder to write")
    parser.add_argument("--baseline", metavar="LABEL", help="label of the run to compare with (default: the first)")
    parser.add_argument(
        "--group-by",
        metavar="FIELD",
        help="field of the documents to group by (default: tasks of the Pile, if all documents have one)",
    )
    parser.add_argument("--num-samples", type=int, default=10_000, help="draws of the paired bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")


def _report(arguments: argparse.Namespace) -> None:
    from tttnn.report import Bootstrap, write_report

    bootstrap = Bootstrap(arguments.num_samples, arguments.seed)
    paths = write_report(arguments.run_folder, arguments.output, arguments.baseline, arguments.group_by, bootstrap)
    for path in paths:
        print(path)
