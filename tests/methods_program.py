"""
Trainers of the compared methods, of tiny parts; and what `evaluation/test_run.py` runs on one process and on two.

`main` writes `FOLDER/NAME-RANK.json` for each of `SCENARIOS`, on each process that `two_processes.py` launches.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from conftest import CONFIGS, TEXTS, GivenRetriever
from transformers import AutoModelForCausalLM

from tttnn import Document, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.evaluation.choose import choose
from tttnn.methods import METHODS, KnnArguments


DOCUMENTS = [TEXTS[2], TEXTS[4] * 2, TEXTS[7] * 3]
SCENARIOS: dict[str, dict[str, Any]] = {
    "context": {},
    "knn-lm": {"knn": KnnArguments([0.1, 0.5], [10.0])},
    # dropout shows whether document i is seeded from (seed, i) on whichever process it is
    "dynamic": {"disable_dropout": False},
}


def make_method(
    name: str,
    model: Any,
    tokenizer: Any,
    texts: list[str],
    folder: Path,
    callbacks: list[Any] | None = None,
    own: dict[str, Any] | None = None,
    **overrides: Any,
) -> Any:
    """Make a trainer with a method; `own` are the method's options, `overrides` go to the arguments."""
    args = TestTimeTrainingArguments(
        **{
            "output_dir": str(folder),
            "num_neighbors": 4,
            "query": "document",
            "max_length": 32,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
            **overrides,
        }
    )
    parts = {"processing_class": tokenizer, "retriever": GivenRetriever(texts), "callbacks": callbacks}
    return TestTimeTrainer(model=model, args=args, method=METHODS[name](**(own or {})), **parts)


def evaluate(name: str, tokenizer: Any, folder: Path) -> list[dict[str, Any]]:
    """Evaluate a scenario, and give its records as JSON would hold them, but for the seconds."""
    overrides = dict(SCENARIOS[name])
    own = {"knn": overrides.pop("knn")} if "knn" in overrides else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"](len(tokenizer)))
    trainer = make_method(name, model, tokenizer, TEXTS[:4], folder, own=own, **overrides)
    trainer.evaluate(DOCUMENTS)
    return [{**json.loads(record.to_json()), "seconds": {}} for record in trainer.records]


def choose_rate(tokenizer: Any, folder: Path, rates: list[float]) -> tuple[float, int]:
    """Choose a learning rate on one document, which one process has; give it, and the documents evaluated after."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"](len(tokenizer)))

    def make(args: Any, method: Any) -> Any:
        return make_method("ttt", model, tokenizer, TEXTS[:4], folder, learning_rate=args.learning_rate)

    trainer = make_method("ttt", model, tokenizer, TEXTS[:4], folder)
    args, method = choose(make, rates, trainer.args, trainer.method, [Document("validation", TEXTS[9])])
    trainer = make(args, method)
    trainer.evaluate(DOCUMENTS)
    return args.learning_rate, len(trainer.records)


def main(folder: Path, tokenizer: Any) -> None:
    """Run every scenario on this process, among the others that were launched."""
    folder.mkdir(exist_ok=True)
    for name in SCENARIOS:
        records = evaluate(name, tokenizer, folder / name)
        (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(records))
    choice = choose_rate(tokenizer, folder / "choice", [1e30, 1e-2, 1e-3])
    (folder / f"choice-{os.environ['RANK']}.json").write_text(json.dumps(choice))
