"""Results of runs: pooled by group, and compared on the documents that two runs share."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tttnn.errors import InputError
from tttnn.evaluation.pile import TASK_OF_SET, TASKS, pile_weights, task_of
from tttnn.intervals import Bootstrap, PairedScores
from tttnn.journal import LATER
from tttnn.records import SECONDS, DocumentRecord
from tttnn.report.runs import Run


Groups = dict[str, list[DocumentRecord]]
POOLED = "pooled, unweighted"


@dataclass
class Result:
    """Scores of some documents in bits per byte; without a byte they are NaN, and so is all that follows from them."""

    group: str  # their task or group, or the name of the total
    documents: int
    num_bytes: int
    before: float
    after: float
    low: float  # the interval of the difference; NaN if there is none
    high: float
    worse: int  # documents with a higher score after than before
    untrained: int
    near_copies: int  # documents with a near-copy among their neighbors
    own_neighbors: int  # documents that are among their own neighbors
    partial: int  # documents whose neighbors come from a part of the index, because machines did not answer
    seconds: dict[str, float]
    trained_tokens: int
    scored_tokens: int

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def ratio(self) -> float:
        """After divided by before."""
        return self.after / self.before if self.before else math.nan


def pool(
    name: str,
    records: list[DocumentRecord],
    bootstrap: Bootstrap,
    groups: Groups | None = None,
    weights: dict[str, float] | None = None,
) -> Result:
    """Pool records; with groups, pool within each and weigh the groups: a document in no group is in no mean."""
    scores = {group: PairedScores.of(members) for group, members in (groups or {name: records}).items()}
    weights = weights or {name: 1.0}
    low, high = bootstrap.interval(scores, weights)
    return Result(
        group=name,
        documents=len(records),
        num_bytes=sum(record.num_bytes for record in records),
        before=_mean(scores, weights, lambda pair: _bits(pair.before, pair.bytes_before)),
        after=_mean(scores, weights, lambda pair: _bits(pair.after, pair.bytes_after)),
        low=low,
        high=high,
        worse=sum(record.nll[-1] > record.nll[0] for record in records),
        untrained=sum(record.status == "untrained" for record in records),
        near_copies=sum(bool(record.near_copies) for record in records),
        own_neighbors=sum(bool(record.own_neighbors) for record in records),
        partial=sum(bool(record.missing_shards) for record in records),
        seconds={phase: sum(record.seconds.get(phase, 0.0) for record in records) for phase in SECONDS},
        trained_tokens=sum(record.num_trained_tokens for record in records),
        scored_tokens=sum(record.num_scored_tokens for record in records),
    )


@dataclass
class Comparison:
    """Two runs on the documents that both have, in bits per byte after adaptation."""

    label: str
    baseline: str
    documents: int
    only_run: int
    only_baseline: int
    after: float = math.nan
    baseline_after: float = math.nan
    low: float = math.nan  # the interval of the difference
    high: float = math.nan
    worse: int = 0  # documents with more bits per byte than the baseline's
    other_bytes: int = 0  # documents of which the two scored a different number of bytes
    other_before: int = 0  # documents whose scores before differ
    # settings that the score before depends on and that differ: of the run, and of the baseline
    causes: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        """The run's bits per byte minus the baseline's."""
        return self.after - self.baseline_after

    @property
    def significant(self) -> bool | None:
        """Whether the interval excludes 0; `None` without an interval."""
        return None if math.isnan(self.low) else self.low > 0 or self.high < 0


class Grouping:
    """Parts documents into tasks of the Pile (if all have one), groups by a field of their metadata, or one group."""

    def __init__(self, runs: list[Run], group_by: str | None = None, bootstrap: Bootstrap | None = None) -> None:
        records = [record for run in runs for record in run.records]
        self.bootstrap = bootstrap or Bootstrap()
        self.is_pile = group_by is None and all(
            str(record.metadata.get("pile_set_name")) in TASK_OF_SET
            for record in records  # it may be anything
        )
        self.kind = "task" if self.is_pile else group_by
        if group_by is not None and all(group_by not in record.metadata for record in records):
            known = sorted({name for record in records for name in record.metadata})
            raise InputError(
                f"`group_by` is {group_by!r}, but no document has such a field. Choose from: {', '.join(known)}."
            )

    def name_of(self, record: DocumentRecord) -> str:
        """Name the group of a document."""
        if self.is_pile:
            return task_of(record)
        return str(record.metadata.get(self.kind, "(none)")) if self.kind else "all"

    def split(self, records: list[DocumentRecord]) -> Groups:
        """Part records by group: tasks in the order of the Pile, groups by name."""
        groups: Groups = {}
        for record in records:
            groups.setdefault(self.name_of(record), []).append(record)
        order = list(TASKS) if self.is_pile else sorted(groups)
        return {name: groups[name] for name in order if name in groups}

    def weighed(self, records: list[DocumentRecord]) -> tuple[str, Groups, dict[str, float]]:
        """Name the total, and give its groups with their weights, without the tasks that have no byte."""
        if not self.is_pile:
            return "all", {"all": records}, {"all": 1.0}
        groups = {
            name: members
            for name, members in self.split(records).items()
            if any(member.num_bytes for member in members)
        }
        name, weights = pile_weights(groups)
        return name, groups, weights

    def results(self, records: list[DocumentRecord]) -> list[Result]:
        """Give a result for each group."""
        return [pool(name, members, self.bootstrap) for name, members in self.split(records).items()]

    def total(self, records: list[DocumentRecord]) -> Result:
        """Give the result over all groups: the Pile's weighted mean over tasks, or all documents pooled."""
        name, groups, weights = self.weighed(records)
        return pool(name, records, self.bootstrap, groups, weights)

    def pooled(self, records: list[DocumentRecord]) -> Result | None:
        """Give the result without weights, if the total has weights."""
        return pool(POOLED, records, self.bootstrap) if self.is_pile else None

    def compare(self, run: Run, baseline: Run) -> Comparison:
        """Compare two runs on the documents that both have."""
        of_run, of_baseline = keyed(run.records), keyed(baseline.records)
        keys = [key for key in of_baseline if key in of_run]
        only_run, only_baseline = len(of_run) - len(keys), len(of_baseline) - len(keys)
        comparison = Comparison(run.label, baseline.label, len(keys), only_run, only_baseline)
        if not keys:
            return comparison
        _, groups, weights = self.weighed([of_baseline[key] for key in keys])
        pairs: dict[str, list[tuple[DocumentRecord, DocumentRecord]]] = {name: [] for name in groups}
        for key in keys:
            name = self.name_of(of_baseline[key]) if self.is_pile else "all"
            if name in pairs:
                pairs[name].append((of_baseline[key], of_run[key]))
        scores = {name: _paired(members) for name, members in pairs.items()}
        comparison.baseline_after = _mean(scores, weights, lambda pair: _bits(pair.before, pair.bytes_before))
        comparison.after = _mean(scores, weights, lambda pair: _bits(pair.after, pair.bytes_after))
        comparison.low, comparison.high = self.bootstrap.interval(scores, weights)
        comparison.worse = sum(of_run[key].bits_per_byte() > of_baseline[key].bits_per_byte() for key in keys)
        comparison.other_bytes = sum(of_run[key].num_bytes != of_baseline[key].num_bytes for key in keys)
        # another batch size changes a score by less
        comparison.other_before = sum(
            not math.isclose(of_run[key].nll[0], of_baseline[key].nll[0], rel_tol=1e-5, abs_tol=1e-4) for key in keys
        )
        if comparison.other_bytes or comparison.other_before:
            names = ("model", "revision", "weights", "config_digest", "tokenizer", "tokenizer_digest", "prefix_token")
            of_text = ("query", "cut", "prompt", "window_length", "stride", "max_length")
            for name in (*names, *of_text, "window_tokens", "stride_tokens", "bf16", "fp16"):
                values = run.settings.get(name), baseline.settings.get(name)
                if values[0] != values[1] and not (name in LATER and None in values):
                    comparison.causes[name] = values
        return comparison


def _paired(members: list[tuple[DocumentRecord, DocumentRecord]]) -> PairedScores:
    """Pair the last scores of two runs, the baseline first."""
    columns = [(one.nll[-1], other.nll[-1], one.num_bytes, other.num_bytes) for one, other in members]
    return PairedScores(*np.array(columns, dtype=np.float64).T)


def _bits(nll: np.ndarray, num_bytes: np.ndarray) -> float:
    return float(nll.sum() / num_bytes.sum() / math.log(2)) if num_bytes.sum() else math.nan


def _mean(groups: dict[str, PairedScores], weights: dict[str, float], value: Callable[[PairedScores], float]) -> float:
    return sum(weights[name] * value(scores) for name, scores in groups.items()) if groups else math.nan


def keyed(records: list[DocumentRecord]) -> dict[tuple[str, int], DocumentRecord]:
    """Key the records of a run by the digest of the text and how often it came before, as another run would."""
    seen: Counter[str] = Counter()
    by_key = {}
    for record in records:
        by_key[record.digest, seen[record.digest]] = record
        seen[record.digest] += 1
    return by_key


def shared_records(runs: list[Run]) -> list[list[DocumentRecord]]:
    """Give, of each run, the records of the documents that all runs have, in the order of the first run."""
    by_key = [keyed(run.records) for run in runs]
    keys = [key for key in by_key[0] if all(key in records for records in by_key)]
    return [[records[key] for key in keys] for records in by_key]


def contaminated(runs: list[Run]) -> set[str]:
    """Give the digests of the documents that have themselves or a near-copy among the neighbors of any run."""
    records = [record for run in runs for record in run.records]
    return {record.digest for record in records if record.near_copies or record.own_neighbors}
