"""Results of lm-evaluation-harness from its files: with and without near-copies, and one run against another."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tttnn.errors import InputError
from tttnn.intervals import Bootstrap


SLOW_SAMPLES = 1_000  # of a bootstrap whose aggregation is a function of the harness
Row = tuple[str, str, str]  # task, filter, metric


@dataclass(frozen=True)
class HarnessRun:
    """
    What a run of lm-evaluation-harness wrote with `--log_samples`.

    Args:
        name (`str`):
            Its folder.
        values (`dict[tuple, dict[str, Any]]`):
            By task, filter and metric: the value of each item by its hash.
        totals (`dict[tuple, float]`):
            The same, as the harness reports them.
        aggregations (`dict[tuple, str]`):
            How values become one.
        near_copies (`dict[str, set[str]]`):
            By task, hashes of items with near-copies among their neighbors.
    """

    name: str
    values: dict[Row, dict[str, Any]]
    totals: dict[Row, float]
    aggregations: dict[Row, str]
    near_copies: dict[str, set[str]]


@dataclass(frozen=True)
class HarnessResult:
    """
    One metric of one task.

    Args:
        task (`str`):
            Its name.
        metric (`str`):
            Its name, and that of the filter if there is one.
        num_items (`int`):
            Items that were counted.
        value (`float`):
            Of the run.
        interval (`tuple[float, float]`):
            Of the value, or with a baseline of the difference: 95 % bootstrap over items, paired.
        baseline (`float`, *optional*):
            Value of the baseline.
        without_near_copies (`HarnessResult`, *optional*):
            The same without items that have near-copies among their neighbors, if there are any.
    """

    task: str
    metric: str
    num_items: int
    value: float
    interval: tuple[float, float]
    baseline: float | None = None
    without_near_copies: "HarnessResult | None" = None


def read_harness_run(folder: str | Path) -> HarnessRun:
    """
    Read the newest results in a folder, and their samples.

    Args:
        folder (`str` or `Path`):
            What was passed as `--output_path`.

    Returns:
        `HarnessRun`: values of each item.

    Raises:
        `ValueError`: If there are no results or no samples, or the samples are not those of the results.
    """
    paths = sorted(Path(folder).rglob("*results_*.json"), key=lambda path: path.name.partition("results_")[2])
    if not paths:
        raise InputError(f"'{folder}' has no results of lm-evaluation-harness. Pass what `--output_path` was.")
    content = json.loads(paths[-1].read_bytes())
    date = paths[-1].stem.partition("results_")[2]
    values: dict[Row, dict[str, Any]] = {}
    for name in content["results"]:
        path = paths[-1].with_name(f"samples_{name}_{date}.jsonl")
        if not path.is_file():
            if name in content.get("groups", {}):
                continue
            raise InputError(f"'{path}' is missing. Run again with `--log_samples`.")
        for line in path.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            for metric in sample["metrics"]:
                items = values.setdefault((name, sample["filter"], metric), {})
                key = sample["doc_hash"]
                while key in items:  # the same item twice in a task
                    key += "+"
                items[key] = sample[metric]
    totals = {key: content["results"][key[0]].get(f"{key[2]},{key[1]}") for key in values}
    aggregations = {key: _aggregation_of(content["configs"].get(key[0], {}), key[2]) for key in values}
    near_copies = {
        name: set(items) for name, items in content["config"].get("tttnn", {}).get("near_copies", {}).items()
    }
    run = HarnessRun(str(folder), values, totals, aggregations, near_copies)
    for row, items in values.items():
        function, total = _function(aggregations[row]), totals[row]
        if function is not None and total is not None:
            again = function([*items.values()])
            if not math.isclose(again, total, rel_tol=1e-6, abs_tol=1e-9):
                raise InputError(
                    f"The samples in '{folder}' give {again} for {row[2]} of {row[0]}, and the results say {total}: "
                    "they are of two runs. Run again into an empty folder."
                )
    return run


def harness_results(run: HarnessRun, baseline: HarnessRun | None = None, seed: int = 0) -> list[HarnessResult]:
    """
    Give each metric of a run, or its difference from a baseline, item by item.

    Args:
        run (`HarnessRun`):
            What `read_harness_run` gave.
        baseline (`HarnessRun`, *optional*):
            Another run with the same items.
        seed (`int`, *optional*, defaults to `0`):
            Of the bootstrap.

    Returns:
        `list[HarnessResult]`: one for each task, filter and metric that has a value for each item.

    Raises:
        `ValueError`: If the two runs have no task in common, or other items in one.
    """
    results = []
    for row, items in run.values.items():
        others = None if baseline is None else baseline.values.get(row)
        function = _function(run.aggregations[row])
        if function is None or (baseline is not None and others is None):
            continue
        if baseline is not None and others is not None and set(items) != set(others):
            raise InputError(
                f"'{run.name}' and '{baseline.name}' have other items of {row[0]}: {len(items)} and {len(others)}, of "
                f"which {len({*items} & {*others})} are the same. Run both with the same `--limit` and data."
            )
        whole = _result(row, [*items], items, others, function, seed)
        copies = run.near_copies.get(row[0], set()) | (baseline.near_copies.get(row[0], set()) if baseline else set())
        left = [key for key in items if key.rstrip("+") not in copies]
        if copies and left:
            part = _result(row, left, items, others, function, seed)
            whole = HarnessResult(**{**vars(whole), "without_near_copies": part})
        results.append(whole)
    if not results:
        raise InputError(
            f"'{run.name}'" + (f" and '{baseline.name}' have" if baseline else " has") + " no metric of each item."
        )
    return results


def _result(
    row: Row,
    keys: list[str],
    items: dict[str, Any],
    others: dict[str, Any] | None,
    function: Callable[[list[Any]], float],
    seed: int,
) -> HarnessResult:
    """Aggregate items, and draw them again."""
    from lm_eval.api.metrics import mean

    values = [items[key] for key in keys]
    bases = None if others is None else [others[key] for key in keys]
    if function is mean:
        differences = np.asarray(values, np.float64) - (0.0 if bases is None else np.asarray(bases, np.float64))
        interval = Bootstrap(seed=seed).mean_interval(differences)
    else:

        def difference(places: np.ndarray) -> float:
            value = function([values[place] for place in places])
            return value - (0.0 if bases is None else function([bases[place] for place in places]))

        interval = Bootstrap(SLOW_SAMPLES, seed).statistic_interval(difference, len(keys))
    metric = row[2] if row[1] == "none" else f"{row[2]} ({row[1]})"
    return HarnessResult(
        row[0], metric, len(keys), function(values), interval, None if bases is None else function(bases)
    )


def _aggregation_of(config: dict[str, Any], metric: str) -> str:
    """Name how a task makes one value of many."""
    for item in config.get("metric_list") or []:
        if item.get("metric") == metric and _function(str(item.get("aggregation"))) is not None:
            return str(item["aggregation"])
    return metric


def _function(name: str) -> Callable[[list[Any]], float] | None:
    """Give the harness's function of a name, of an aggregation or of a metric with one of its own."""
    import lm_eval.api.metrics  # noqa: F401, registers them
    from lm_eval.api.registry import (
        aggregation_registry,
        get_aggregation,
        get_metric_aggregation,
        metric_agg_registry,
    )

    if name in aggregation_registry:
        return get_aggregation(name)
    return get_metric_aggregation(name) if name in metric_agg_registry else None
