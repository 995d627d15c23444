"""
The Pile evaluation of test-time training on nearest neighbors: bits per byte, task by task, before and after.

    accelerate launch examples/pile_eval.py --model gpt2 --index user/pile-index --dataset user/pile-test --tasks all

`--dataset` takes Pile-format data, rows of {"text", "meta": {"pile_set_name"}}: `.jsonl` or `.jsonl.zst` files, or a
Hub data set. Of each task, the authors' sample is taken: shuffled by seed 1216, the first fifth, then the first
`--limit`. `--preset tttlm` runs the authors' setting. Several processes share the documents: `torchrun
--nproc_per_node 2 ...`.
"""

from dataclasses import dataclass, field

from tttnn import Document, JournalCallback, TestTimeTrainer, read_documents
from tttnn.cli import EvaluateArguments, load_parts, parse_evaluation
from tttnn.pile import TEST_FRACTION, parse_tasks, pile_weights, select_documents, task_of
from tttnn.report import task_table


@dataclass
class PileArguments(EvaluateArguments):
    """What is evaluated."""

    dataset: list[str] = field(
        metadata={"help": "Pile-format .jsonl or .jsonl.zst files, folders of them, or Hub data sets."},
    )
    limit: int | None = field(default=None, metadata={"help": "Documents of each task, at most."})
    tasks: str = field(default="all", metadata={"help": "Tasks parted by commas: github,arxiv. Or all."})
    fraction: float = field(default=TEST_FRACTION, metadata={"help": "Share of each task's documents."})
    max_document_bytes: int | None = field(
        default=None, metadata={"help": "Cut longer documents to that many bytes (not the authors' protocol)."}
    )


def cut(document: Document, max_bytes: int | None) -> Document:
    """Keep the beginning of a document, up to a whole character."""
    text = document.text.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
    return Document(document.id, text, document.metadata)


def main() -> None:
    """Evaluate and print a row per task."""
    arguments, args = parse_evaluation(PileArguments, None, description=__doc__ or "")
    if arguments.max_document_bytes is not None and arguments.max_document_bytes < 1:
        raise ValueError(f"`max_document_bytes` is {arguments.max_document_bytes}. Pass at least 1.")
    documents = read_documents(
        arguments.dataset, args.text_column, arguments.id_column, arguments.split, arguments.dataset_revision
    )
    by_task = select_documents(documents, parse_tasks(arguments.tasks), arguments.fraction, arguments.limit)
    selected = [cut(document, arguments.max_document_bytes) for found in by_task.values() for document in found]
    for task in by_task:
        if not any(document.text for document in selected if task_of(document) == task):
            raise ValueError(f"The documents of the task {task!r} are empty. Leave it out of --tasks.")
    trainer = TestTimeTrainer(args=args, eval_dataset=selected, callbacks=[JournalCallback()], **load_parts(arguments))
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        groups = {
            task: [record for record in trainer.records if task_of(selected[record.index]) == task] for task in by_task
        }
        print(task_table(groups, *pile_weights(by_task)))
        untrained = [record.id for record in trainer.records if record.status == "untrained"]
        if untrained:
            print(f"Untrained, and counted so: {', '.join(untrained)}")
        seconds = {phase: round(metrics[f"eval_seconds_{phase}"]) for phase in ("retrieve", "train", "score")}
        print(f"Seconds by phase, all processes: {seconds}")


if __name__ == "__main__":
    main()
