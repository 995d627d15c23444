"""Requests of lm-evaluation-harness: which of them share a query, what text an item has, how a text is halved."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, hash_string, make_disjoint_window


def by_document(requests: list[Instance]) -> dict[str, tuple[str, list[int]]]:
    """Group requests by document, each group with its query."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        known = request.task_name is not None and request.doc_id is not None
        groups[repr((request.task_name, request.doc_id) if known else request.args[0])].append(place)
    return {name: (_shared([requests[place].args[0] for place in places]), places) for name, places in groups.items()}


def by_context(requests: list[Instance]) -> dict[str, tuple[str, list[int]]]:
    """Group requests by context and how to generate, so that none is padded."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        groups[repr((request.task_name, request.doc_id, request.args[0]))].append(place)
    return {name: (requests[places[0]].args[0], places) for name, places in groups.items()}


def _shared(contexts: list[str]) -> str:
    """
    Give the beginning that contexts share, without a word that is cut.

    Some metrics score a choice without its question too: with an empty context, or with "Answer:" alone. So a context
    that is the end of another does not count.
    """
    whole = [
        context for context in contexts if not any(other != context and other.endswith(context) for other in contexts)
    ]
    shared = os.path.commonprefix(whole)
    return shared if shared in whole else re.sub(r"\S+\Z", "", shared)


def text_of(request: Instance) -> str:
    """Give all texts of an item, without examples before it: question, choices and reference answers."""
    return " ".join(dict.fromkeys([*_texts(request.doc)] or [*_texts(request.args)]))


def hash_of(row: Any) -> str:  # noqa: ANN401
    """Name an item as the harness does in its samples."""
    return str(hash_string(json.dumps(row, indent=2, default=handle_non_serializable, ensure_ascii=False)))


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401
    """Give the texts in a row of a data set, whatever they are in."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def halves(
    token_ids: list[int], number: int, prefix_id: int, max_length: int
) -> tuple[list[tuple[None, list[int], list[int]]], list[tuple[None, list[int], list[int]]]]:
    """Cut the harness's rolling windows at a token: what is scored before it, and what after it."""
    before, after, seen = [], [], 0
    windows = get_rolling_token_windows(
        token_list=token_ids, prefix_token=prefix_id, max_seq_len=max_length, context_len=1
    )
    for context, continuation in map(make_disjoint_window, windows):
        place = min(max(number - seen, 0), len(continuation))
        if place:
            before.append((None, context, continuation[:place]))
        if place < len(continuation):
            after.append((None, [*context, *continuation[:place]], continuation[place:]))
        seen += len(continuation)
    return before, after
