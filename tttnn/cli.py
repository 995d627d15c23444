"""The command `tttnn`: build an index, look into it, evaluate a model with it."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError


if TYPE_CHECKING:
    from tttnn.training_args import TestTimeTrainingArguments

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"

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
    index: str = field(metadata={"help": "Hub id or folder of an index (see `tttnn build-index`)."})
    dataset: str = field(
        metadata={
            "help": "Test documents: a .jsonl, .jsonl.zst or .parquet file, a folder of texts, or a Hub data set."
        }
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
    embedder: str | None = field(
        default=None, metadata={"help": "Embedder of the index, where it now has another name or path."}
    )

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` is {self.dtype!r}. Pass one of {', '.join(DTYPES)}.")


Evaluation = TypeVar("Evaluation", bound=EvaluateArguments)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the program's name. By default those of the process.

    Returns:
        `int`: 0, or 1 where the input is at fault; then the error is on standard error.
    """
    commands = {"build-index": build_index, "retrieve": retrieve, "evaluate": evaluate}
    parser = argparse.ArgumentParser(
        prog="tttnn",
        description="Test-time training on nearest neighbors.",
        epilog="commands:\n"
        "  build-index   embed and index a corpus\n"
        "  retrieve      show the nearest documents of a text\n"
        "  evaluate      adapt a model to each test document and report bits per byte\n\n"
        "`tttnn COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tttnn {version('tttnn')}")
    parser.add_argument("command", choices=commands, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    parsed = parser.parse_args(argv)
    try:
        commands[parsed.command](parsed.arguments)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, SafetensorError) as error:
        # those of torch, out of memory say, keep their traceback
        raised_in = Path(extract_tb(error.__traceback__)[-1].filename)
        if isinstance(error, RuntimeError | TypeError) and Path(__file__).parent not in raised_in.parents:
            raise
        print(f"tttnn {parsed.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def build_index(argv: Sequence[str]) -> None:
    """
    Embed and index a corpus.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.
    """
    parser = argparse.ArgumentParser(
        prog="tttnn build-index",
        description="Embed a corpus and write a Faiss index of it, with its texts, to a folder.",
    )
    parser.add_argument(
        "source",
        nargs="+",
        help=".jsonl, .jsonl.zst or .parquet files of rows, folders of files (each a text), or ids of Hub data sets",
    )
    parser.add_argument("--output", required=True, help="folder to write; new or empty")
    parser.add_argument(
        "--embedder",
        default=DEFAULT_EMBEDDER,
        help="Hub id or folder of a sentence-transformers model (default: %(default)s)",
    )
    parser.add_argument("--embedder-revision", help="branch, tag or commit of the embedder")
    parser.add_argument(
        "--max-seq-length", type=int, help="tokens of a text that are embedded (default: the embedder's)"
    )
    parser.add_argument("--text-column", default="text", help="column with the text (default: %(default)s)")
    parser.add_argument("--id-column", help="column with the id (default: id, or else file and line)")
    parser.add_argument("--split", default="train", help="split of a Hub data set (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--max-documents", type=int, help="stop after that many documents")
    parser.add_argument(
        "--shard-size", type=int, default=100_000, help="documents in a shard; memory holds one (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="texts in one forward pass of the embedder (default: %(default)s)"
    )
    parser.add_argument("--device", help="where the embedder runs, cuda or cpu say (default: the fastest there is)")
    arguments = parser.parse_args(argv)

    from tttnn.corpus import read_documents
    from tttnn.embedding import Embedder
    from tttnn.index import build_shards, open_index, write_index

    documents = read_documents(
        arguments.source,
        arguments.text_column,
        arguments.id_column,
        arguments.split,
        arguments.revision,
        limit=arguments.max_documents,
    )
    embedder = Embedder(arguments.embedder, arguments.embedder_revision, arguments.max_seq_length, arguments.device)
    shards = build_shards(documents, embedder, arguments.shard_size, arguments.batch_size, show_progress_bar=True)
    index = open_index(write_index(shards, embedder.describe(), arguments.output))
    print(f"Indexed {len(index)} documents in {len(index.shards)} shards: {arguments.output}")


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
    parser.add_argument("--json", action="store_true", help="print whole neighbors, a JSON object a line")
    arguments = parser.parse_args(argv)

    from tttnn.retriever import NeighborRetriever

    retriever = NeighborRetriever.from_pretrained(
        arguments.index, revision=arguments.revision, embedder=arguments.embedder
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
    arguments, args = parse_evaluation(
        EvaluateArguments,
        argv,
        prog="tttnn evaluate",
        description="Adapt a model to each test document by one step on each of its neighbors, and report bits per\n"
        "byte before and after. Every finished document goes into a journal in the output folder; started\n"
        "again, an interrupted run goes on. Several processes: torchrun --nproc_per_node N -m tttnn evaluate ...",
    )

    from tttnn.callbacks import JournalCallback
    from tttnn.corpus import read_documents
    from tttnn.report import document_table, import_figure, plot_curve, pooled_line
    from tttnn.trainer import TestTimeTrainer

    if args.score_every_neighbor:
        import_figure()  # what is missing for the picture is said before the work, not after it
    documents = list(
        read_documents(
            arguments.dataset,
            args.text_column,
            arguments.id_column,
            arguments.split,
            arguments.dataset_revision,
            limit=arguments.limit,
        )
    )
    trainer = TestTimeTrainer(
        args=args, eval_dataset=documents, callbacks=[JournalCallback()], **load_parts(arguments)
    )
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        print(document_table(trainer.records) if len(documents) <= 100 else pooled_line(trainer.records))
        if args.score_every_neighbor:
            print(plot_curve(trainer.records, Path(args.output_dir or ".") / "curve.png"))


def parse_evaluation(
    kind: type[Evaluation], argv: Sequence[str] | None, prog: str | None = None, description: str = ""
) -> tuple[Evaluation, "TestTimeTrainingArguments"]:
    """
    Parse what is evaluated, and `TestTimeTrainingArguments` on the base of a preset if one is named.

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
        `tuple`: an instance of `kind`, and the `TestTimeTrainingArguments`.

    Raises:
        `ValueError`: If a value is out of range.
    """
    from transformers import HfArgumentParser, TrainingArguments

    from tttnn.training_args import PRESETS, TestTimeTrainingArguments

    hidden = {f"--{item.name}" for item in fields(TrainingArguments)} - {f"--{name}" for name in SHOWN}

    class Parser(HfArgumentParser):
        def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
            if names[0] in hidden or names[0].startswith("--no_"):
                options["help"] = argparse.SUPPRESS
            if names[0] == "--optim":
                options["metavar"] = "NAME"  # of forty
            return super().add_argument(*names, **options)

    parser = Parser(
        [kind, TestTimeTrainingArguments],  # type: ignore[list-item]
        prog=prog,
        usage=f"{prog or '%(prog)s'} --model MODEL --index INDEX --dataset DATASET [options]",
        description=description,
        epilog="Every other field of transformers.TrainingArguments is accepted too; --NAME false unsets a flag.",
        formatter_class=_HelpFormatter,
    )
    chosen = parser.parse_known_args(argv)[0].preset
    if chosen is not None:
        if chosen not in PRESETS:
            raise ValueError(f"There is no preset {chosen!r}. Pass one of {', '.join(PRESETS)}.")
        parser.set_defaults(**PRESETS[chosen])
    arguments, args = parser.parse_args_into_dataclasses(argv)
    return arguments, args


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def load_parts(arguments: EvaluateArguments) -> dict[str, Any]:
    """
    Load what a `TestTimeTrainer` is made of.

    Args:
        arguments (`EvaluateArguments`):
            Names and revisions.

    Returns:
        `dict[str, Any]`: `model`, `processing_class` and `retriever`.

    Raises:
        `OSError`: If the model, its tokenizer or the index is not there.
        `ValueError`: If the index is damaged, or the embedder is not its own.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tttnn.retriever import NeighborRetriever

    return {
        "model": AutoModelForCausalLM.from_pretrained(
            arguments.model, revision=arguments.model_revision, dtype=arguments.dtype
        ),
        "processing_class": AutoTokenizer.from_pretrained(arguments.model, revision=arguments.model_revision),
        "retriever": NeighborRetriever.from_pretrained(
            arguments.index, revision=arguments.index_revision, embedder=arguments.embedder
        ),
    }
