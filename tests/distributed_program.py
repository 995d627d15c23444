"""
What `test_distributed.py` runs on one process and on two: evaluations of tiny parts, each dumped as JSON.

`main` writes `FOLDER/NAME-RANK.json` for each scenario, on each of the processes that `two_processes.py` launches;
their journals lie in `FOLDER/NAME`.
"""

import json
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from conftest import CONFIGS, TEXTS
from transformers import AutoModelForCausalLM

from tttnn import JournalCallback, Neighbor, TestTimeTrainer, TestTimeTrainingArguments


# of very different lengths, so that the processes drift apart
DOCUMENTS = [text * (1 + 3 * (number % 2)) for number, text in enumerate(reversed(TEXTS))][:7]
UNREACHABLE = DOCUMENTS[3]

SCENARIOS: dict[str, dict[str, Any]] = {
    # dropout and the random order show whether document i is seeded from (seed, i) on whichever process it is
    "all": {"disable_dropout": False, "order": "random", "score_every_neighbor": True},
    "fewer than processes": {"documents": DOCUMENTS[:1]},
    "resumed": {},
    "uneven": {},
}
MINUTES = 4 * 60  # longer than anything here takes


class TurningRetriever:
    """Gives the texts of conftest from a place on that the query decides; one document cannot be retrieved for."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def describe(self) -> dict[str, Any]:
        """The same for the classes below, which only take longer."""
        return {"retriever": "TurningRetriever"}

    def retrieve(self, texts: list[str], top_k: int) -> list[list[Neighbor]]:
        self.queries += texts
        if UNREACHABLE in texts:
            raise ConnectionError("the index is unreachable")
        starts = [zlib.crc32(text.encode()) for text in texts]
        rows = [[(start + place) % len(TEXTS) for place in range(top_k)] for start in starts]
        return [[Neighbor(row, TEXTS[row], float(place)) for place, row in enumerate(members)] for members in rows]


class WaitingRetriever(TurningRetriever):
    """Keeps whoever has the first document until all others are finished, as a very long document would."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def retrieve(self, texts: list[str], top_k: int) -> list[list[Neighbor]]:
        started = time.monotonic()
        while DOCUMENTS[0] in texts and num_finished(self.folder) < len(DOCUMENTS) - 1:
            assert time.monotonic() < started + MINUTES, "nobody took the other documents"
            time.sleep(0.01)
        return super().retrieve(texts, top_k)


class DyingRetriever(TurningRetriever):
    """Lets process 1 die on its second document, while process 0, at its second, would take long."""

    def retrieve(self, texts: list[str], top_k: int) -> list[list[Neighbor]]:
        if len(self.queries) == 1:
            if os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(MINUTES)
        return super().retrieve(texts, top_k)


def num_finished(folder: Path) -> int:
    """Count the whole lines of all journals, without their headers."""
    counts = [path.read_bytes().count(b"\n") - 1 for path in folder.glob("journal-eval*.jsonl")]
    return sum(max(count, 0) for count in counts)


def make_trainer(
    folder: str | Path,
    tokenizer: Any,
    vocab_size: int | None = None,
    retriever: TurningRetriever | None = None,
    **overrides: Any,
) -> TestTimeTrainer:
    """Make a trainer of a tiny GPT-2 that keeps a journal in `folder`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"](vocab_size or len(tokenizer)))
    args = TestTimeTrainingArguments(
        **{
            "output_dir": str(folder),
            "num_neighbors": 3,
            "query": "document",
            "max_length": 32,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
            **overrides,
        }
    )
    parts = {"processing_class": tokenizer, "callbacks": [JournalCallback()]}
    return TestTimeTrainer(model, args, retriever or TurningRetriever(), **parts)


def evaluate(trainer: TestTimeTrainer, documents: list[str] = DOCUMENTS) -> dict[str, Any]:
    """Evaluate, and give all that came of it as JSON would hold it."""
    metrics = trainer.evaluate(documents)
    result = {
        "metrics": metrics,
        "records": [json.loads(record.to_json()) for record in trainer.records],
        "retrieved": len(trainer.retriever.queries),
    }
    return json.loads(json.dumps(result))


def cut_journal(path: Path, num_records: int) -> None:
    """Leave the header and the first records, as a killed process would."""
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 1 + num_records
    path.write_bytes(b"".join(lines[: 1 + num_records]))


def prepare(folder: Path, tokenizer: Any) -> None:
    """Leave the journal of one process, for the scenario that resumes from it."""
    evaluate(make_trainer(folder / "resumed", tokenizer))
    cut_journal(folder / "resumed" / "journal-eval.jsonl", 3)


def main(folder: Path, tokenizer: Any) -> None:
    """Run every scenario on this process, among the others that were launched."""
    rank = os.environ["RANK"]
    for name, scenario in SCENARIOS.items():
        overrides = dict(scenario)
        documents = overrides.pop("documents", DOCUMENTS)
        retriever = WaitingRetriever(folder / name) if name == "uneven" else None
        result = evaluate(make_trainer(folder / name, tokenizer, retriever=retriever, **overrides), documents)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(result))
    try:
        make_trainer(folder / "carried", tokenizer, reset_optimizer=False)
    except ValueError as error:
        (folder / f"carried-{rank}.json").write_text(json.dumps(str(error)))


def be_killed(folder: Path, tokenizer: Any) -> None:
    """Evaluate until process 1 dies, and with it the launch."""
    evaluate(make_trainer(folder / "killed", tokenizer, retriever=DyingRetriever()))


def resume(folder: Path, tokenizer: Any) -> None:
    """Resume the run of which a process was killed."""
    finished = num_finished(folder / "killed")  # before any process can finish another
    result = evaluate(make_trainer(folder / "killed", tokenizer)) | {"finished": finished}
    (folder / f"killed-{os.environ['RANK']}.json").write_text(json.dumps(result))
