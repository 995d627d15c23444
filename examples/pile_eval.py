"""
The Pile evaluation of test-time training on nearest neighbors: bits per byte, task by task, before and after.

    accelerate launch examples/pile_eval.py --model gpt2 --index user/pile-index --dataset user/pile-test --tasks all

`--dataset` takes Pile-format data, rows of {"text", "meta": {"pile_set_name"}}: `.jsonl` or `.jsonl.zst` files, or a
Hub data set. Of each task, the authors' sample is taken: shuffled by seed 1216, the first fifth, then the first
`--limit`. `--preset tttlm` runs the authors' setting, and `--method` what it is compared with. Settings are chosen on
`--validation` documents, or on the `--validation_limit` documents of each task that follow the sample. Several
processes share the documents: `torchrun --nproc_per_node 2 ...`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tttnn import Document, read_documents
from tttnn.evaluation.options import EvaluateArguments, parse_evaluation
from tttnn.evaluation.pile import TEST_FRACTION, parse_tasks, pile_weights, select_documents, task_of
from tttnn.evaluation.run import Outcome, evaluate_documents
from tttnn.report import task_table


@dataclass
class PileArguments(EvaluateArguments):
    """What is evaluated."""

    dataset: list[str] = field(
        metadata={"help": "Pile-format .jsonl or .jsonl.zst files, folders of them, or Hub data sets."},
    )
    limit: int | None = field(default=None, metadata={"help": "Documents of each task, at most."})
    validation_limit: int | None = field(
        default=None,
        metadata={"help": "Validation documents of each task, at most; without --validation, those after the sample."},
    )
    tasks: str = field(default="all", metadata={"help": "Tasks parted by commas: github,arxiv. Or all."})
    fraction: float = field(default=TEST_FRACTION, metadata={"help": "Share of each task's documents."})
    max_document_bytes: int | None = field(
        default=None, metadata={"help": "Cut longer documents to that many bytes (not the authors' protocol)."}
    )


def cut(document: Document, max_bytes: int | None) -> Document:
    """Keep the beginning of a document, up to a whole character."""
    text = document.text.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
    return Document(document.id, text, document.metadata)


def read(arguments: PileArguments, source: list[str], text_column: str) -> Iterable[Document]:
    """Read Pile-format documents, one by one."""
    return read_documents(source, text_column, arguments.id_column, arguments.split, arguments.dataset_revision)


def documents_to_evaluate(arguments: PileArguments, text_column: str) -> tuple[list[Document], list[Document]]:
    """Give the test documents, and those on which settings are chosen."""
    tasks = parse_tasks(arguments.tasks)
    found = read(arguments, arguments.dataset, text_column)
    documents = [document for document in found if task_of(document) in tasks]
    by_task = select_documents(documents, tasks, arguments.fraction, arguments.limit)
    tested = [cut(document, arguments.max_document_bytes) for found in by_task.values() for document in found]
    for task in by_task:
        if not any(document.text for document in tested if task_of(document) == task):
            raise ValueError(f"The documents of the task {task!r} are empty. Leave it out of --tasks.")
    others: dict[str, list[Document]] = {}
    if arguments.validation:
        others = select_documents(
            read(arguments, arguments.validation, text_column), tasks, 1.0, arguments.validation_limit
        )
    elif arguments.validation_limit is not None:
        for task, found in select_documents(documents, list(by_task), 1.0).items():
            first = len(by_task[task])
            others[task] = found[first : first + arguments.validation_limit]
    lacking = [task for task in by_task if not others.get(task)]
    if others and lacking:
        raise ValueError(f"No validation document is left of {', '.join(lacking)}. Lower --fraction or --limit.")
    validation = [cut(document, arguments.max_document_bytes) for found in others.values() for document in found]
    return tested, validation


def report(outcome: Outcome) -> None:
    """Print a row per task, and what stands out."""
    groups: dict[str, list] = {}
    for record in outcome.records:
        groups.setdefault(task_of(record), []).append(record)
    print(task_table(groups, *pile_weights(groups)))
    untrained = [record.id for record in outcome.records if record.status == "untrained"]
    if untrained:
        print(f"Untrained, and counted so: {', '.join(untrained)}")
    phases = ("retrieve", "train", "score")
    seconds = {phase: round(outcome.metrics[f"{outcome.name}_seconds_{phase}"]) for phase in phases}
    print(f"Seconds by phase, all processes: {seconds}")


def main() -> None:
    """Evaluate and print a table."""
    arguments, args, own = parse_evaluation(PileArguments, None, description=__doc__ or "")
    if arguments.max_document_bytes is not None and arguments.max_document_bytes < 1:
        raise ValueError(f"`max_document_bytes` is {arguments.max_document_bytes}. Pass at least 1.")
    documents, validation = documents_to_evaluate(arguments, args.text_column)
    for outcome in evaluate_documents(arguments, args, own, documents, validation):
        if outcome.is_main:
            if arguments.index_fraction:
                print(f"{outcome.name}:")
            report(outcome)


if __name__ == "__main__":
    main()
