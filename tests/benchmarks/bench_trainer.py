"""
Time `TestTimeTrainer.evaluate` against the plain loop of `tests/reference.py`, pair by pair in one process.

Both train the same model on the same neighbors and score the same texts, before and after. They take turns, and the
first of a pair is the second of the next, so that a machine that slows down or wakes up favors neither. The loop uses
`torch.optim.AdamW` as it is by default; the trainer is timed with the same optimizer (`optim="adamw_torch"`), which
makes a fair pair, and with its own default (`adamw_torch_fused`).

`--curve` scores after every neighbor, as the code of the method's authors does; with `--length 1024 --neighbors 10
--case real` that is their setting for GPT-2.

`--case head` times one training step in the same way: with the output layer computed a few rows at a time, as the
trainer does where it can, against all logits at once.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import parts
import torch
from reference import Settings, adapted_nll, tokenize
from transformers import PreTrainedModel, PreTrainedTokenizerBase


GEMM_SIZE = 2048
TOLERANCE = 1e-5


def gemm_rate(clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the multiplications and additions per second of float32 matrix products, the best of five."""
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE).unbind()
    seconds = []
    for _ in range(5):
        start = clock()
        a @ b
        seconds.append(clock() - start)
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
    *,
    curve: bool,
) -> None:
    """Time pairs with each optimizer of the trainer, and print what came out."""
    settings = Settings(max_length, learning_rate=2e-5, score_every_neighbor=curve)
    documents = [document for document, _ in episodes]
    expected: list[list[float]] = []

    def loop() -> None:
        expected[:] = adapted_nll(model, tokenizer, episodes, settings)

    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(min(len(tokenize(tokenizer, text)), max_length) for _, texts in episodes for text in texts)
    num_scores = len(episodes[0][1]) + 1 if curve else 2
    scored = num_scores * sum(len(tokenize(tokenizer, document)) for document in documents)
    operations = num_parameters * (6 * trained + 2 * scored)
    print(
        f"\n{name}: {num_parameters / 1e6:.2f} M parameters, {len(documents)} documents with {len(episodes[0][1])} "
        f"neighbors each, {trained} tokens trained on, {scored} scored, {torch.get_num_threads()} threads"
    )
    for optim in ("adamw_torch", "adamw_torch_fused"):
        trainer = parts.make_trainer(
            model, tokenizer, episodes, max_length=max_length, optim=optim, score_every_neighbor=curve
        )

        def evaluate(trainer: parts.TestTimeTrainer = trainer) -> None:
            trainer.evaluate(documents)

        loop()  # the first calls also warm up
        evaluate()
        differences = [
            abs(ours / theirs - 1)
            for record, scores in zip(trainer.records, expected, strict=True)
            for ours, theirs in zip(record.nll, scores, strict=True)
        ]
        assert max(differences) < TOLERANCE, differences
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
        print(f"    scores differ by at most       {max(differences):.1e}")
        for clock, clock_name in enumerate(("clock    ", "processor")):
            print(f"    ratio of {clock_name} seconds     {spread(ratios[clock])}")
            print(f"    overhead in ms a document      {spread(overheads[clock])}")
        print(f"    GEMM rate in GFLOP/s           {spread([rate / 1e9 for rate in rates])}")
        print(f"    fraction of it, training only  {spread(train_fractions)}  6 x parameters x tokens")
        print(f"    fraction of it, trainer        {spread(fractions)}  and 2 x parameters x tokens for scoring")
        print(f"    fraction of it, loop           {spread(loop_fractions)}")


def compare_heads(length: int, pairs: int) -> None:
    """Time pairs of training steps with SmolLM2: the output layer row by row, and all logits."""
    model, tokenizer = parts.real_parts()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    ratios: tuple[list[float], list[float]] = ([], [])
    seconds: dict[bool, list[float]] = {True: [], False: []}
    fractions: dict[bool, list[float]] = {True: [], False: []}
    rates = []
    with parts.training_steps(model, tokenizer, length) as step:
        rows, logits = step(True), step(False)  # which also warms up
        assert abs(rows / logits - 1) < TOLERANCE, (rows, logits)
        for pair in range(pairs):
            rates.append(gemm_rate(time.process_time))
            order = [True, False] if pair % 2 == 0 else [False, True]
            times = {by_rows: timed(partial(step, by_rows)) for by_rows in order}
            for clock, (ours, theirs) in enumerate(zip(times[True], times[False], strict=True)):
                ratios[clock].append(ours / theirs)
            for by_rows, (_, processor) in times.items():
                seconds[by_rows].append(processor)
                fractions[by_rows].append(6 * num_parameters * length / processor / rates[-1])
            print(
                f"    pair {pair + 1}: {seconds[True][-1]:.2f} and {seconds[False][-1]:.2f} processor seconds, "
                f"{rates[-1] / 1e9:.1f} GFLOP/s",
                flush=True,
            )
    print(
        f"\nOne step of {length} tokens, SmolLM2-135M-Instruct, dequantized from Q4_1, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, {pairs} pairs, median (lowest to highest)"
    )
    for clock, clock_name in enumerate(("clock    ", "processor")):
        print(f"    by rows / all logits, {clock_name} seconds  {spread(ratios[clock])}")
    print(f"    GEMM rate in GFLOP/s, processor         {spread([rate / 1e9 for rate in rates])}")
    for by_rows, name in ((True, "by rows   "), (False, "all logits")):
        print(f"    processor seconds, {name}           {spread(seconds[by_rows])}")
        print(f"    fraction of the GEMM rate, {name}   {spread(fractions[by_rows])}  6 x parameters x tokens")
    print(f"    losses                                  {rows:.6f} and {logits:.6f}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["real", "tiny", "both", "head"], default="both")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--neighbors", type=int, default=4)
    parser.add_argument("--documents", type=int, default=100, help="of the tiny model; the real one has 1")
    parser.add_argument("--length", type=int, help="tokens of a step; by default 256, and 1024 of `--case head`")
    parser.add_argument("--curve", action="store_true", help="score after every neighbor")
    arguments = parser.parse_args()
    if arguments.case in ("tiny", "both"):
        episodes = parts.make_episodes(arguments.documents, arguments.neighbors, 200)
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a second thread would only wait
        compare("Tiny GPT-2", *parts.tiny_parts(), episodes, 64, arguments.pairs, curve=arguments.curve)
        torch.set_num_threads(num_threads)
    if arguments.case in ("real", "both"):
        length = arguments.length or 256
        episodes = parts.make_episodes(1, arguments.neighbors, 4 * length)
        name = "SmolLM2-135M-Instruct, dequantized from Q4_1"
        compare(name, *parts.real_parts(), episodes, length, arguments.pairs, curve=arguments.curve)
    if arguments.case == "head":
        compare_heads(arguments.length or 1024, arguments.pairs)


if __name__ == "__main__":
    main()
