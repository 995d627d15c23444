"""Made runs, with scores in bits per byte."""

import math

from tttnn.intervals import Bootstrap
from tttnn.journal import Journal
from tttnn.records import DocumentRecord
from tttnn.report.runs import Run


FEW = Bootstrap(num_samples=200)
SETTINGS = {"method": "ttt", "trainable": "full", "model": "a-model", "query": "prefix", "num_neighbors": 2}


def make_record(index, scores, num_bytes=100, **fields):
    """A record with these bits per byte; its index stands for its text."""
    return DocumentRecord(
        **{
            "index": index,
            "digest": f"{index:016x}",
            "id": f"document {index}",
            "metadata": {},
            "num_bytes": num_bytes,
            "num_words": 10,
            "nll": [score * num_bytes * math.log(2) for score in scores],
            "neighbor_ids": [7, 8],
            "seconds": {"retrieve": 0.5, "train": 2.0, "score": 1.0, "model": 2.0, "total": 4.0},
            **fields,
        }
    )


def write_run(folder, records, name="eval", **settings):
    journal = Journal(folder / f"journal-{name}.jsonl")
    journal.open(SETTINGS | settings)
    for record in records:
        journal.append(record)
    journal.close()
    return folder


def make_run(records, label="a run", folder=None, **settings):
    return Run(label, folder, "eval", SETTINGS | settings, records)


def write_two_runs(folder):
    """Three documents; the second run is better by 0.25 bits per byte on each."""
    before = [1.0, 2.0, 1.5]
    first = [make_record(index, [score, score - 0.25]) for index, score in enumerate(before)]
    second = [make_record(index, [score, score - 0.5]) for index, score in enumerate(before)]
    return [write_run(folder / "first", first), write_run(folder / "second", second, num_neighbors=4)]
