"""
Scoring windows one by one against several in one forward pass, in turns.

    python tests/benchmarks/bench_scoring.py --case real --rounds 5

Prints, for each batch size, the median and the spread of its seconds divided by those of one window at a time.
"""

import argparse
from statistics import median
from time import perf_counter

import torch
from parts import module_texts, real_parts, tiny_parts

from tttnn.adaptation.scoring import ScoredText, score


BATCH_SIZES = (1, 2, 4, 8)


def main() -> None:
    """Time each batch size in each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("tiny", "real"), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    arguments = parser.parse_args()
    model, tokenizer = real_parts() if arguments.case == "real" else tiny_parts()
    text = ScoredText.from_text("".join(module_texts()), tokenizer, arguments.max_length)
    text = ScoredText(text.windows[: arguments.windows], text.num_bytes, text.num_words)
    ratios: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    scores = {size: score(model, text, size) for size in BATCH_SIZES}  # warms up, too
    for _ in range(arguments.rounds):
        seconds = {}
        for size in BATCH_SIZES:
            start = perf_counter()
            score(model, text, size)
            seconds[size] = perf_counter() - start
        for size in BATCH_SIZES:
            ratios[size].append(seconds[size] / seconds[1])
    threads = torch.get_num_threads()
    print(f"{arguments.case}, {len(text.windows)} windows of {arguments.max_length} tokens, {threads} threads")
    for size in BATCH_SIZES:
        low, high = min(ratios[size]), max(ratios[size])
        error = abs(scores[size] / scores[1] - 1)
        print(f"batches of {size}: {median(ratios[size]):.3f} ({low:.3f} to {high:.3f}); score differs by {error:.1e}")


if __name__ == "__main__":
    main()
