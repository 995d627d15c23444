"""
Measure the peak memory of an episode with SmolLM2-135M against what it is made of.

Each measurement is a separate process, because the highest resident memory of a process (`resource.getrusage`) never
falls. Weights, snapshot, gradients and AdamW's two moments are counted from the parameters; the activations are what a
plain forward and backward pass needs at its peak beyond weights and gradients; the rest is Python with its libraries.

`--case head` measures two training steps alone: with the output layer computed a few rows at a time, as the trainer
does where it can, and with all logits at once.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import parts
import torch
from reference import Settings, adapted_nll, chunk_loss, tokenize


MEASURED = ("pass", "trainer", "checkpointed", "loop", "rows", "logits")


def resident() -> float:
    """Give the resident memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    """Give the highest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(what: str, length: int) -> dict[str, float]:
    """Do one thing in this process and give what it took, in MB."""
    libraries = resident()
    model, tokenizer = parts.real_parts()
    loaded, loading = resident(), peak()
    episodes = parts.make_episodes(1, 3, 4 * length)
    document, neighbors = episodes[0]
    if what in ("rows", "logits"):
        with parts.training_steps(model, tokenizer, length) as step:
            for _ in range(2):  # the second has AdamW's moments beside it
                step(what == "rows")
    elif what in ("trainer", "checkpointed"):
        trainer = parts.make_trainer(
            model, tokenizer, episodes, max_length=length, activation_checkpointing=what == "checkpointed"
        )
        trainer.evaluate([document])
    elif what == "loop":
        adapted_nll(model, tokenizer, episodes, Settings(length, 2e-5, score_every_neighbor=False))
    else:
        model.train()
        model.config.use_cache = False
        for neighbor in neighbors:
            chunk_loss(model, tokenize(tokenizer, neighbor)[:length]).backward()
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6
    return {"libraries": libraries, "loaded": loaded, "loading": loading, "peak": peak(), "weights": parameters}


def measured(what: str, length: int) -> dict[str, float]:
    """Do one thing in a separate process."""
    command = [sys.executable, __file__, "--measure", what, "--length", str(length)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def compare_heads(length: int, rounds: int) -> None:
    """Print the peak of steps with the output layer row by row, and with all logits."""
    print(
        f"Two steps of {length} tokens, SmolLM2-135M-Instruct, dequantized from Q4_1, with torch {torch.__version__}, "
        f"{rounds} rounds: megabytes, median (lowest to highest)"
    )
    results = {what: [measured(what, length) for _ in range(rounds)] for what in ("rows", "logits")}
    peaks = {}
    for what, name in (("rows", "by rows"), ("logits", "all logits")):
        values = sorted(result["peak"] for result in results[what])
        peaks[what] = statistics.median(values)
        held = results[what][0]["libraries"] + 5 * results[what][0]["weights"]
        print(f"  peak, {name:12} {peaks[what]:8.0f} ({values[0]:.0f} to {values[-1]:.0f})")
        print(f"  beyond Python, weights, snapshot, gradients and moments {peaks[what] - held:8.0f}")
    print(f"  by rows / all logits {peaks['rows'] / peaks['logits']:8.3f}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["episode", "head"], default="episode")
    parser.add_argument("--length", type=int, help="tokens of a step; by default 256, and 1024 of `--case head`")
    parser.add_argument("--rounds", type=int, default=3, help="of `--case head`")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.length)))
    elif arguments.case == "head":
        compare_heads(arguments.length or 1024, arguments.rounds)
    else:
        compare_episodes(arguments.length or 256)


def compare_episodes(length: int) -> None:
    """Print the peak of an episode of the trainer and of the plain loop against the terms."""
    plain, trainer, checkpointed, loop = (
        measured(what, length) for what in ("pass", "trainer", "checkpointed", "loop")
    )
    weights = plain["weights"]
    terms = {
        "Python and its libraries": plain["libraries"],
        "weights": weights,
        "snapshot": weights,
        "gradients": weights,
        "AdamW's moments": 2 * weights,
        f"activations of {length} tokens": plain["peak"] - plain["libraries"] - 2 * weights,
    }
    print(f"SmolLM2-135M-Instruct, dequantized from Q4_1, with torch {torch.__version__}: megabytes")
    for name, size in [*terms.items(), ("sum", sum(terms.values()))]:
        print(f"  {name:35} {size:8.0f}")
    for name, result in (("trainer", trainer), ("its activations checkpointed", checkpointed), ("plain loop", loop)):
        print(f"  peak, {name:29} {result['peak']:8.0f}  {result['peak'] / loop['peak']:.3f} of the loop")
    print(f"  peak, loading the model             {plain['loading']:8.0f}")


if __name__ == "__main__":
    main()
