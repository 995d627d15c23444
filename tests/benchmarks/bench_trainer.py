"""
Time `TestTimeTrainer.evaluate` against the plain loop of `tests/reference.py`, pair by pair in one process.

Both train the same model on the same neighbors and score the same texts, before and after. They take turns, and the
first of a pair is the second of the next, so that a machine that slows down or wakes up favors neither. The loop uses
`torch.optim.AdamW` as it is by default; the trainer is timed with the same optimizer (`optim="adamw_torch"`), which
makes a fair pair, and with its own default (`adamw_torch_fused`).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import parts
import torch
from reference import Settings, adapted_nll, tokenize
from transformers import PreTrainedModel, PreTrainedTokenizerBase


GEMM_SIZE = 2048
TOLERANCE = 1e-5


def gemm_rate() -> float:
    """Measure the multiplications and additions per second of float32 matrix products, the best of five."""
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE).unbind()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * GEMM_SIZE**3 / min(seconds)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Time one call: seconds on the clock, and seconds of processors, which a busy machine disturbs less."""
    start = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def spread(values: list[float]) -> str:
    """Write the median of several values, and the lowest and the highest."""
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def compare(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    episodes: parts.Episodes,
    max_length: int,
    pairs: int,
) -> None:
    """Time pairs with each optimizer of the trainer, and print what came out."""
    settings = Settings(max_length, learning_rate=2e-5, score_every_neighbor=False)
    documents = [document for document, _ in episodes]
    expected: list[list[float]] = []

    def loop() -> None:
        expected[:] = adapted_nll(model, tokenizer, episodes, settings)

    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(min(len(tokenize(tokenizer, text)), max_length) for _, texts in episodes for text in texts)
    scored = 2 * sum(len(tokenize(tokenizer, document)) for document in documents)
    operations = num_parameters * (6 * trained + 2 * scored)
    print(
        f"\n{name}: {num_parameters / 1e6:.2f} M parameters, {len(documents)} documents with {len(episodes[0][1])} "
        f"neighbors each, {trained} tokens trained on, {scored} scored, {torch.get_num_threads()} threads"
    )
    for optim in ("adamw_torch", "adamw_torch_fused"):
        trainer = parts.make_trainer(model, tokenizer, episodes, max_length=max_length, optim=optim)

        def evaluate(trainer: parts.TestTimeTrainer = trainer) -> None:
            trainer.evaluate(documents)

        loop()  # the first calls also warm up
        evaluate()
        for record, curve in zip(trainer.records, expected, strict=True):
            assert all(abs(a / b - 1) < TOLERANCE for a, b in zip(record.nll, curve, strict=True)), (record.nll, curve)
        ratios: tuple[list[float], list[float]] = ([], [])
        overheads: tuple[list[float], list[float]] = ([], [])
        rates, fractions, train_fractions, loop_fractions = [], [], [], []
        for pair in range(pairs):
            rates.append(gemm_rate())
            order = [loop, evaluate] if pair % 2 == 0 else [evaluate, loop]
            seconds = {function: timed(function) for function in order}
            for clock, (ours, theirs) in enumerate(zip(seconds[evaluate], seconds[loop], strict=True)):
                ratios[clock].append(ours / theirs)
                overheads[clock].append((ours - theirs) / len(documents) * 1000)
            fractions.append(operations / seconds[evaluate][0] / rates[-1])
            loop_fractions.append(operations / seconds[loop][0] / rates[-1])
            training = sum(record.seconds["train"] for record in trainer.records)
            train_fractions.append(6 * num_parameters * trained / training / rates[-1])
        print(f"  trainer with {optim} / loop with torch.optim.AdamW, {pairs} pairs, median (lowest to highest)")
        for clock, clock_name in enumerate(("clock    ", "processor")):
            print(f"    ratio of {clock_name} seconds     {spread(ratios[clock])}")
            print(f"    overhead in ms a document      {spread(overheads[clock])}")
        print(f"    GEMM rate in GFLOP/s           {spread([rate / 1e9 for rate in rates])}")
        print(f"    fraction of it, training only  {spread(train_fractions)}  6 x parameters x tokens")
        print(f"    fraction of it, trainer        {spread(fractions)}  and 2 x parameters x tokens for scoring")
        print(f"    fraction of it, loop           {spread(loop_fractions)}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["real", "tiny", "both"], default="both")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--neighbors", type=int, default=4)
    parser.add_argument("--documents", type=int, default=100, help="of the tiny model; the real one has 1")
    arguments = parser.parse_args()
    if arguments.case in ("tiny", "both"):
        episodes = parts.make_episodes(arguments.documents, arguments.neighbors, 200)
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a second thread would only wait
        compare("Tiny GPT-2", *parts.tiny_parts(), episodes, 64, arguments.pairs)
        torch.set_num_threads(num_threads)
    if arguments.case in ("real", "both"):
        episodes = parts.make_episodes(1, arguments.neighbors, 1000)
        name = "SmolLM2-135M-Instruct, dequantized from Q4_1"
        compare(name, *parts.real_parts(), episodes, 256, arguments.pairs)


if __name__ == "__main__":
    main()
