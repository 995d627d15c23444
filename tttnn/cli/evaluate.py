"""The commands that evaluate a model, and choose settings for it."""

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttnn.errors import InputError
from tttnn.helptext import Parser, switch


if TYPE_CHECKING:
    from tttnn.adaptation import TestTimeTrainingArguments, Tuning
    from tttnn.documents import Document


DESCRIPTION = (
    "Adapt a model to each test document by one step on each of its neighbors, or by another method, and report bits "
    "per byte before and after. Every finished document goes into a journal in the output folder; an interrupted run "
    "resumes when it is started again. For several processes: torchrun --nproc-per-node N -m tttnn evaluate ..."
)


def add_evaluate(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn evaluate` to the list of commands; its options depend on the method, and have another parser."""
    commands.add_parser("evaluate", help="adapt a model to each test document, and report bits per byte")


def evaluate(argv: Sequence[str]) -> None:
    """Run `tttnn evaluate` with the words after it."""
    from tttnn.evaluation import EvaluateArguments, parse_evaluation

    evaluation = parse_evaluation(EvaluateArguments, argv, prog="tttnn evaluate", description=DESCRIPTION)
    # not before, because the help needs none of it
    from tttnn.documents import read_documents
    from tttnn.evaluation import evaluate_documents
    from tttnn.report import document_table, import_figure, plot_curve, pooled_line

    inputs, chosen_on, args = evaluation.inputs, evaluation.validation, evaluation.args
    # what is missing at the end is told at the beginning
    _check_loggers(args)
    if args.score_every_neighbor:
        import_figure()

    def read(
        names: str | list[str], limit: int | None, revision: str | None = None, config: str | None = None
    ) -> "list[Document]":
        columns = (args.text_column, inputs.id_column)
        return list(read_documents(names, *columns, inputs.split, revision, limit=limit, dataset_config=config))

    if chosen_on.validation_limit is not None and not chosen_on.validation:
        raise InputError("`--validation-limit` was passed without `--validation`. Name the validation documents.")
    documents = read(inputs.dataset, inputs.limit, inputs.dataset_revision, inputs.dataset_config)
    validation = read(chosen_on.validation, chosen_on.validation_limit) if chosen_on.validation else []
    folder = Path(args.output_dir or ".")
    outcomes = evaluate_documents(evaluation, documents, validation)
    if not outcomes[0].is_main:
        return
    for outcome in outcomes:
        if len(outcomes) > 1:
            print(f"{outcome.name}:")
        show = document_table if len(documents) <= 100 else pooled_line
        print(show(outcome.records, args.prompt or "none"))
        if args.score_every_neighbor:
            print(plot_curve(outcome.records, folder / (outcome.name.replace("eval", "curve", 1) + ".png")))
    print(f"The results are in {folder}. For a report: tttnn report {shlex.quote(str(folder))}")


def add_tune(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn tune`."""
    parser = commands.add_parser(
        "tune",
        help="choose settings on documents of the index itself",
        description="Measure what neighbors gain on documents drawn from the index, without their own passages and "
        "near-copies, and choose the learning rate, the number of neighbors and the mixture. No test document is "
        "touched. `tttnn evaluate --preset FILE` uses the settings, and `--budget` the curve. An interrupted run "
        "resumes when it is started again.",
    )
    parser.set_defaults(run=_tune)
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder of a causal language model")
    parser.add_argument("index", metavar="INDEX", help="Hub id or folder of an index")
    parser.add_argument("--output-dir", default="tttnn_tuning", help="where the journals go")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: tuned.json in the output folder)")
    parser.add_argument("--num-documents", type=int, default=24, help="rows of the index to measure on")
    parser.add_argument("--max-document-bytes", type=int, default=4000, help="cut longer rows to that many bytes")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[2e-5, 1e-4], help="learning rates to choose from"
    )
    parser.add_argument("--num-neighbors", type=int, default=20, help="try every number of neighbors up to this one")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens in a training chunk")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw and of the steps")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights"
    )
    flag: dict[str, Any] = {"nargs": "?", "const": True, "default": False, "type": switch}  # as in `evaluate`
    parser.add_argument("--bf16", **flag, help="mixed precision with bfloat16")
    parser.add_argument("--use-cpu", **flag, help="run on the CPU even if there is a GPU")
    parser.add_argument("--model-revision", help="branch, tag or commit of the model")
    parser.add_argument("--index-revision", help="branch, tag or commit of the index")
    parser.add_argument("--embedder", help="the index's embedder, if its name or path has changed")
    parser.add_argument("--trust-index", action="store_true", help="open a --factory index that was built elsewhere")


def _tune(arguments: argparse.Namespace) -> None:
    from tttnn.adaptation import TestTimeTrainingArguments
    from tttnn.evaluation import load_model, tune_on_index
    from tttnn.retrieval import NeighborCache, NeighborRetriever

    names = ("output_dir", "num_neighbors", "max_length", "seed", "bf16", "use_cpu")
    args = TestTimeTrainingArguments(report_to="none", **{name: getattr(arguments, name) for name in names})
    retriever = NeighborRetriever.from_pretrained(
        arguments.index,
        revision=arguments.index_revision,
        embedder=arguments.embedder,
        trust_index=arguments.trust_index,
        cache=NeighborCache(),
    )
    model, tokenizer = load_model(arguments.model, arguments.model_revision, arguments.dtype)
    output = Path(arguments.output or Path(arguments.output_dir, "tuned.json"))
    tuning = tune_on_index(
        model,
        tokenizer,
        retriever,
        args,
        arguments.num_documents,
        arguments.max_document_bytes,
        arguments.learning_rates,
        output,
    )
    if args.process_index == 0:
        _print_tuning(tuning, output)


def _print_tuning(tuning: "Tuning", output: Path) -> None:
    from tttnn.report import markdown_table

    header = ["method", "neighbors", "learning rate", "mix", "bits per byte", "difference", "95 % interval"]
    rows = []
    for row in tuning.curve:
        low, high = row.interval or (math.nan, math.nan)
        settings = [str(row.settings.get(name, "")) for name in ("num_neighbors", "learning_rate", "mix")]
        scores = [f"{row.bits_per_byte:.4f}", f"{row.difference:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        costs = [f"{row.tokens_read:.0f}", f"{row.tokens_trained:.0f}", f"{row.seconds or 0:.2f}"]
        rows.append([row.method, *settings, *scores, *costs])
    print(markdown_table([*header, "tokens read", "trained", "seconds"], rows))
    chosen = next(row for row in tuning.curve if row.method == "ttt" and row.settings == tuning.settings)
    if chosen.interval is None or not chosen.interval[1] < 0:
        print("No number of neighbors is better than the prompt alone beyond what chance may explain.")
    number, rate = tuning.settings["num_neighbors"], tuning.settings["learning_rate"]
    print(
        f"Chosen on {tuning.num_documents} documents of the index: {number} neighbors, learning rate {rate:g}, mix "
        f"{tuning.settings['mix']}."
    )
    print(f"The settings are in {output}. To use them: tttnn evaluate --preset {shlex.quote(str(output))}")


def _check_loggers(args: "TestTimeTrainingArguments") -> None:
    """Refuse a logger that transformers does not know, or whose package is missing."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"`--report-to` names a logger that cannot be used here: {error}") from error
