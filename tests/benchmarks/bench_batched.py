"""
Time documents in batches (`batch_documents`) against the same documents one by one, LoRA in both, in turns.

Each round runs every batch size once, in an order that rotates, in one process and with one model, so that a machine
that slows down favors none. Documents a minute are of `evaluate` as a whole: scored before and after, trained,
restored; and of training alone. The scores of all sizes are compared. With `--compute` the device is used that
transformers finds.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import parts
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.methods import METHODS, TrainableArguments, make_trainable


TOLERANCE = 1e-5


def compare(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    episodes: parts.Episodes,
    max_length: int,
    sizes: list[int],
    rounds: int,
    use_cpu: bool,
) -> None:
    """Time rounds of all sizes, and print documents a minute."""
    trainable = TrainableArguments("lora")
    adapted = make_trainable(copy.deepcopy(model), trainable)
    documents = [document for document, _ in episodes]
    trainers = {}
    for size in sizes:
        args = TestTimeTrainingArguments(
            output_dir=str(Path(tempfile.gettempdir(), "tttnn-benchmarks")),
            num_neighbors=len(episodes[0][1]),
            query="document",
            max_length=max_length,
            learning_rate=1e-3,
            use_cpu=use_cpu,
            disable_tqdm=True,
            batch_documents=size,
        )
        retriever = parts.GivenNeighbors(episodes)
        method = METHODS["ttt"](trainable=trainable)
        trainers[size] = TestTimeTrainer(adapted, args, retriever, method=method, processing_class=tokenizer)
    whole: dict[int, list[float]] = {size: [] for size in sizes}
    training: dict[int, list[float]] = {size: [] for size in sizes}
    expected: list[float] = []
    for number in range(rounds + 1):
        place = number % len(sizes)
        for size in sizes[place:] + sizes[:place]:
            start = time.perf_counter()
            trainers[size].evaluate(documents)
            seconds = time.perf_counter() - start
            records = trainers[size].records
            scores = [record.nll[-1] for record in records]
            expected = expected or scores
            assert all(abs(a / b - 1) < TOLERANCE for a, b in zip(scores, expected, strict=True)), (scores, expected)
            if number > 0:  # the first round warms up
                whole[size].append(60 * len(documents) / seconds)
                training[size].append(60 * len(documents) / sum(record.seconds["train"] for record in records))
    tokens = sum(record.num_trained_tokens for record in trainers[sizes[0]].records)
    print(
        f"\n{name}: {len(documents)} documents with {len(episodes[0][1])} neighbors each, {tokens} tokens trained on, "
        f"chunks of {max_length}, {torch.get_num_threads()} threads, {rounds} rounds"
    )
    print("documents a minute, median (lowest to highest), and median of the ratio to one by one in the same round")
    for title, rates in (("evaluate", whole), ("training alone", training)):
        for size, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(values, rates[sizes[0]], strict=True))
            spread = f"{statistics.median(values):8.2f} ({min(values):.2f} to {max(values):.2f})"
            print(f"  {title:15} batch {size:2}  {spread:32}  {ratio:.2f}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["real", "tiny", "both"], default="both")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="the first is the base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--neighbors", type=int, default=4)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compute", choices=["cpu", "default"], default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = {"tiny": ("Tiny GPT-2", parts.tiny_parts), "real": ("SmolLM2-135M-Instruct", parts.real_parts)}
    for case, (name, make_parts) in cases.items():
        if arguments.case in (case, "both"):
            episodes = parts.make_episodes(arguments.documents, arguments.neighbors, 4 * arguments.max_length)
            options = (arguments.sizes, arguments.rounds, arguments.compute == "cpu")
            compare(name, *make_parts(), episodes, arguments.max_length, *options)


if __name__ == "__main__":
    main()
