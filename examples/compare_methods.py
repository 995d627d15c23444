"""
Compare test-time training with its variants and other methods on the Pile's tasks: one command, one report.

    python examples/compare_methods.py --model gpt2 --index user/pile-index --dataset user/pile-test --tasks all \
        --output-dir runs/compare

Each comparison is a run of `examples/pile_eval.py` in its own folder. All share documents, neighbors and windows.
Learning rates and the weights of kNN-LM are chosen on the `--validation-limit` documents of each task that follow the
sample, or on `--validation`. The sweep resumes after a kill. `--only` selects some of the comparisons. With
`--prompt none` leave out `prefix`, and with `--query document` also `query` and `both`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import pile_eval
from pile_eval import PileArguments

from tttnn.evaluation import evaluate_documents, parse_evaluation
from tttnn.helptext import dashed
from tttnn.methods import METHODS, Method


# The options of each. NEIGHBORS stands for the number of neighbors, RATE for the rate that was chosen for `nearest`.
COMPARISONS = {
    "none": "--method none",
    "prefix": "--method prefix",
    "nearest": "--learning-rates 2e-5 5e-5 1e-4 2e-4 4e-4 --score-every-neighbor True",
    "query": "--method query --learning-rates 2e-5 5e-5 1e-4 2e-4",
    "both": "--train-on both --learning-rates 2e-5 5e-5 1e-4 2e-4",
    "sift": "--selector sift --learning-rate RATE",
    "hull": "--selector hull --learning-rate RATE",
    "passages": "--passage-length 128 --learning-rate RATE",
    "cache": "--mix cache --learning-rate RATE",
    "context": "--method context",
    "context+ttt": "--method context+ttt --learning-rates 2e-5 5e-5 1e-4",
    "lora": "--trainable lora --learning-rates 3e-4 1e-3 3e-3",
    "farthest": "--order farthest --learning-rate RATE",
    "random": "--order random --learning-rate RATE",
    "carried-optimizer": "--reset-optimizer False --learning-rates 5e-5 1e-4 2e-4",
    "one-step": "--gradient-accumulation-steps NEIGHBORS --learning-rates 1e-4 3e-4 1e-3",
    "knn-lm": "--method knn-lm",
    "dynamic": "--method dynamic --learning-rates 2e-5 5e-5 1e-4 2e-4",
    "last-layers": "--trainable last-layers --learning-rates 1e-4 3e-4 1e-3",
    "layernorm": "--trainable layernorm --learning-rates 1e-4 1e-3 1e-2",
    "ia3": "--trainable ia3 --learning-rates 1e-3 1e-2 3e-2",
    "prefix-tuning": "--trainable prefix --learning-rates 1e-3 1e-2 3e-2",
    "two-passes": "--num-train-epochs 2 --learning-rate RATE",
    "no-near-copies": "--drop-near-copies True --learning-rate RATE",
    "index-size": "--index-fraction 0.01 0.1 0.5 1.0 --learning-rate RATE",
}


def options_of(name: str, num_neighbors: int) -> tuple[list[str], type[Method]]:
    """Give the options of a comparison, in which RATE may stand, and its method."""
    options = COMPARISONS[name].replace("NEIGHBORS", str(num_neighbors)).split()
    return options, METHODS[options[options.index("--method") + 1] if "--method" in options else "ttt"]


def chosen_rate(folder: Path) -> str:
    """Read the learning rate that was chosen for the run `nearest`; its variants share it."""
    journal = folder / "nearest" / "journal-eval.jsonl"
    if not journal.is_file():
        raise FileNotFoundError(f"'{journal}' is missing: its learning rate is used. Run `nearest` first.")
    with journal.open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["settings"]["learning_rate"])


def main() -> None:
    """Run every comparison that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), metavar="NAME")
    parser.add_argument("--index", required=True)
    parser.add_argument("--embedder")
    parser.add_argument("--num-neighbors", type=int, default=20)
    parser.add_argument("--validation", nargs="+", default=[])
    parser.add_argument("--validation-limit", type=int, default=1)
    parser.add_argument("--output-dir", type=Path, required=True)
    sweep, shared = parser.parse_known_args(dashed(sys.argv[1:]))
    if not any(word.split("=")[0] in ("--precision", "--bf16", "--fp16") for word in shared):
        shared += ["--precision", "float32"]  # each run would choose alone, and they are compared
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "carried-optimizer" in sweep.only:
        raise ValueError("A carried optimizer takes one process. Leave `carried-optimizer` out by --only.")
    for name in sweep.only:
        options, method = options_of(name, sweep.num_neighbors)
        if "RATE" in options:
            options[options.index("RATE")] = chosen_rate(sweep.output_dir)
        if method.retrieves:
            options += ["--index", sweep.index, "--num-neighbors", str(sweep.num_neighbors)]
            options += ["--embedder", sweep.embedder] if sweep.embedder else []
        if "--learning-rates" in options or method.chooses:
            options += ["--validation-limit", str(sweep.validation_limit)]
            options += ["--validation", *sweep.validation] if sweep.validation else []
        print(f"== {name}: {' '.join(options)}", flush=True)
        options += ["--output-dir", str(sweep.output_dir / name), *shared]
        evaluation = parse_evaluation(PileArguments, options)
        documents, validation = pile_eval.documents_to_evaluate(evaluation)
        for outcome in evaluate_documents(evaluation, documents, validation):
            if outcome.is_main:
                print(outcome.name)
                pile_eval.report(outcome, evaluation.args.prompt)


if __name__ == "__main__":
    main()
